#!/bin/sh
# The stand-in for report.c where there is no C compiler: the same report from the same file.
set -eu
awk -F '[,/]' '
NR == 1 { next }
{
    key = $1 "," $2 + 0
    if (!(key in days)) { order[++n] = key; high[key] = -1e9; low[key] = 1e9 }
    days[key]++; rain[key] += $4; sum[key] += ($5 + $6) / 2; total++
    if ($4 > 0) wet[key]++
    if ($5 + 0 > high[key]) high[key] = $5 + 0
    if ($6 + 0 < low[key]) low[key] = $6 + 0
}
END {
    if (!n) { print "no data" > "/dev/stderr"; exit 2 }
    print "year,month,days,wet_days,rain_mm,mean_c,high_c,low_c" > "output/monthly.csv"
    w = h = c = order[1]
    for (i = 1; i <= n; i++) {
        k = order[i]
        printf "%s,%d,%d,%.1f,%.2f,%.1f,%.1f\n", k, days[k], wet[k], rain[k], sum[k] / days[k], high[k], low[k] > "output/monthly.csv"
        if (rain[k] > rain[w]) w = k
        if (high[k] > high[h]) h = k
        if (low[k] < low[c]) c = k
    }
    printf "%d months, %d days\n", n, total > "output/report.txt"
    split(w, p, ","); printf "wettest: %d-%02d, %.1f mm on %d days\n", p[1], p[2], rain[w], wet[w] > "output/report.txt"
    split(h, p, ","); printf "hottest: %d-%02d, %.1f C\n", p[1], p[2], high[h] > "output/report.txt"
    split(c, p, ","); printf "coldest: %d-%02d, %.1f C\n", p[1], p[2], low[c] > "output/report.txt"
    printf "%d months from %d lines\n", n, NR
}' input/seattle-weather.csv
