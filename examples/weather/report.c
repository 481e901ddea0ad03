/* A month-by-month report of a weather file: reads input/seattle-weather.csv, writes output/monthly.csv and
 * output/report.txt. Ends with 2 and a sentence on stderr when the file is missing or a line makes no sense.
 *
 *     cc -O2 -o report report.c
 *     duly create ./report --schedule '* * * * *' --input seattle-weather.csv=../data/seattle-weather.csv
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct month { int year, month, days, wet; double rain, high, low, sum; };

static struct month months[1200];
static size_t count;

static struct month *find(int year, int month) {
    if (count && months[count - 1].year == year && months[count - 1].month == month) return &months[count - 1];
    if (count == sizeof months / sizeof *months) { fprintf(stderr, "more than 100 years of months\n"); exit(2); }
    months[count] = (struct month){.year = year, .month = month, .high = -1e9, .low = 1e9};
    return &months[count++];
}

int main(void) {
    FILE *in = fopen("input/seattle-weather.csv", "r");
    if (!in) { perror("input/seattle-weather.csv"); return 2; }
    char line[512];
    long number = 0, skipped = 0;
    while (fgets(line, sizeof line, in)) {
        int year, month, day;
        double rain, high, low, wind;
        if (++number == 1) continue; /* the header */
        if (sscanf(line, "%d/%d/%d,%lf,%lf,%lf,%lf", &year, &month, &day, &rain, &high, &low, &wind) != 7) {
            if (++skipped > 10) { fprintf(stderr, "line %ld: not weather: %s", number, line); return 2; }
            continue;
        }
        struct month *m = find(year, month);
        m->days++;
        m->wet += rain > 0;
        m->rain += rain;
        m->sum += (high + low) / 2;
        if (high > m->high) m->high = high;
        if (low < m->low) m->low = low;
    }
    fclose(in);
    if (!count) { fprintf(stderr, "no data\n"); return 2; }

    FILE *csv = fopen("output/monthly.csv", "w"), *text = fopen("output/report.txt", "w");
    if (!csv || !text) { perror("output"); return 2; }
    fprintf(csv, "year,month,days,wet_days,rain_mm,mean_c,high_c,low_c\n");
    const struct month *wettest = months, *hottest = months, *coldest = months;
    for (const struct month *m = months; m < months + count; m++) {
        fprintf(csv, "%d,%d,%d,%d,%.1f,%.2f,%.1f,%.1f\n", m->year, m->month, m->days, m->wet, m->rain,
                m->sum / m->days, m->high, m->low);
        if (m->rain > wettest->rain) wettest = m;
        if (m->high > hottest->high) hottest = m;
        if (m->low < coldest->low) coldest = m;
    }
    fprintf(text, "%zu months, %ld days\n", count, number - 1 - skipped);
    fprintf(text, "wettest: %d-%02d, %.1f mm on %d days\n", wettest->year, wettest->month, wettest->rain, wettest->wet);
    fprintf(text, "hottest: %d-%02d, %.1f C\n", hottest->year, hottest->month, hottest->high);
    fprintf(text, "coldest: %d-%02d, %.1f C\n", coldest->year, coldest->month, coldest->low);
    if (fclose(csv) || fclose(text)) { perror("output"); return 2; }
    printf("%zu months from %ld lines\n", count, number);
    return 0;
}
