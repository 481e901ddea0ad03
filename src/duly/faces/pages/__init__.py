"""The dashboard: pages over the servicer's use-cases, rendered here, kept up to date by one event stream a page.

    table.py     paths → pages        visit.py   one request: who, what, its form       sessions.py   cookies, CSRF
    site.py      templates, headers   live.py    the event stream of a page             static.py     files, hashes
    words.py     values → words       drawing.py values → SVG paths                     ansi.py       logs → HTML
    home  jobs  job_form  runs  lateness  failures  timeline  forecast  cluster  sign_in    the pages

Every page is complete without scripts; `?format=json` gives what it shows. Everything that came from outside is
text: templates escape always, the Content-Security-Policy allows this server's own files only.
"""
