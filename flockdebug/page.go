package flockdebug

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"time"
)

// Handler returns the page, for GET and HEAD. It shows what this process holds, since when
// and by which code, its waits, what other processes hold of or want from the same files,
// and who waits for whom; locks held for longer than a minute, or for longer than a second
// while somebody waits for them, and cycles are marked. Without [Start] it shows
// what Snapshot and Holders know, which has no times and no code. It needs no script,
// nothing from elsewhere, and no certain path. With thousands of locks the system takes a
// second to say what other processes hold: then its last answer is shown, and the page
// says of when that is.
//
//	?format=json     all of it, as JSON
//	?format=pprof    the profile of [Profile], for go tool pprof
//
// Who may see it may see command lines and paths: see the package comment.
func Handler() http.Handler { return http.HandlerFunc(serve) }

func serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	// What fails is written before the header, not after half a page.
	var b bytes.Buffer
	var err error
	switch r.FormValue("format") {
	case "":
		h.Set("Content-Type", "text/html; charset=utf-8")
		from, _ := strconv.Atoi(r.FormValue("from"))
		err = page.Execute(&b, newView(process.gather(), from))
	case "json":
		h.Set("Content-Type", "application/json")
		enc := json.NewEncoder(&b)
		enc.SetIndent("", "  ")
		err = enc.Encode(process.gather().complete())
	case "pprof":
		h.Set("Content-Type", "application/octet-stream")
		h.Set("Content-Disposition", `attachment; filename="flockctx.held.pb.gz"`)
		err = Profile().WriteTo(&b, 0)
	default:
		http.Error(w, "format is json or pprof", http.StatusBadRequest)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	if r.Method != http.MethodHead {
		w.Write(b.Bytes()) // the client may be gone
	}
}

// complete adds what the page shows otherwise.
func (s *state) complete() *state {
	for i := range s.Held {
		s.Held[i].Stack = trace(s.Held[i].pcs)
	}
	for i := range s.Waiting {
		s.Waiting[i].Stack = trace(s.Waiting[i].pcs)
	}
	s.Cycles = [][]string{}
	for _, c := range newGraph(s).chains() {
		if c.cyclic {
			s.Cycles = append(s.Cycles, c.names())
		}
	}
	return s
}

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"short": short,
	"ago":   func(t, now time.Time) string { return short(now.Sub(t).Seconds()) },
}).Parse(pageText))

// short returns a time in seconds as a person says it.
func short(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %02d s", d/time.Minute, d%time.Minute/time.Second)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %02d min", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}
