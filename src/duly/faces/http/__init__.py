"""The HTTP API, by nouns; `duly.faces.api` puts it together.

gate ─▶ operation (who may, which parameters) ─▶ jobs | runs | files | fleet | system ─▶ answer
                                                         │
                                                    the servicer's use-cases
"""
