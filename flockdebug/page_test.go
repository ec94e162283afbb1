package flockdebug_test

import (
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/flockctx/flockctx/flockdebug"
)

// get asks the handler for query.
func get(t testing.TB, query string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	flockdebug.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/some/prefix/locks"+query, nil))
	if w.Code != http.StatusOK {
		t.Fatal(w.Code, w.Body)
	}
	return w
}

// A state is what the JSON has.
type state struct {
	Recording   *time.Time
	Held        []lockState
	Waiting     []lockState
	Others      []peerState
	OthersError string `json:"others_error"`
	Cycles      [][]string
}

type lockState struct {
	Path, Mode, Mechanism, Op, Code string
	Start, Length                   int64
	Seconds                         float64
	Goroutine                       int
	InTheWay                        int `json:"in_the_way"`
	Stack                           []string
}

type peerState struct {
	Path, Command, Mode string
	PID                 int
	Waiting             bool
}

func getState(t testing.TB) (s state) {
	t.Helper()
	must(t, json.Unmarshal(get(t, "?format=json").Body.Bytes(), &s))
	return s
}

func TestMethodsAndHeaders(t *testing.T) {
	h := flockdebug.Handler()
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, "/", nil))
		if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %d %v", method, w.Code, w.Header())
		}
	}
	for query, want := range map[string]string{"": "text/html; charset=utf-8", "?format=json": "application/json", "?format=pprof": "application/octet-stream"} {
		w := get(t, query)
		if got := w.Header().Get("Content-Type"); got != want {
			t.Errorf("%s is %s, want %s", query, got, want)
		}
		if w.Header().Get("Cache-Control") != "no-store" || !strings.Contains(w.Header().Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%s: %v", query, w.Header())
		}
		head := httptest.NewRecorder()
		h.ServeHTTP(head, httptest.NewRequest("HEAD", "/"+query, nil))
		if head.Code != http.StatusOK || head.Body.Len() != 0 || head.Header().Get("Content-Type") != want {
			t.Errorf("HEAD %s: %d, %d bytes, %v", query, head.Code, head.Body.Len(), head.Header())
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/?format=xml", nil))
	if w.Code != http.StatusBadRequest {
		t.Error(w.Code)
	}
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/?from=-5&from=x", nil))
	if w.Code != http.StatusOK {
		t.Error(w.Code)
	}
}

// The page needs nothing but itself, wherever it is.
func TestThePageStandsAlone(t *testing.T) {
	record(t)
	scene(t, t.TempDir())
	body := get(t, "").Body.String()
	for _, m := range regexp.MustCompile(`(?:href|src|action)="([^"]*)"`).FindAllStringSubmatch(body, -1) {
		if !strings.HasPrefix(m[1], "?") {
			t.Errorf("it refers to %s", m[1])
		}
	}
	for _, bad := range []string{"<script", "url(", "@import", "<img", "<link", "ZgotmplZ"} {
		if strings.Contains(body, bad) {
			t.Errorf("it has %s", bad)
		}
	}
	if strings.Count(body, "<svg") != 3 {
		t.Errorf("%d drawings, want 3", strings.Count(body, "<svg"))
	}
	for _, want := range []string{"50 goroutines", "50 waiting", "These wait for each other", "flockdebug_test.serveJob"} {
		if !strings.Contains(body, want) {
			t.Errorf("it lacks %q", want)
		}
	}
}

func TestHostileNames(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no such file names")
	}
	record(t)
	const evil = `"><script>alert(1)<` + "x>'&\x1b[31m\xff" + `{{.}}`
	path := filepath.Join(t.TempDir(), evil)
	startOther(t, []string{path}, "rsync", evil, "</title><svg onload=alert(1)>")
	wait(t, path, serveJob)
	eventually(t, "the other process is seen", func() bool { return len(getState(t).Others) > 0 || runtime.GOOS != "linux" })
	body := get(t, "").Body.String()
	for _, bad := range []string{"<script", "<svg onload", "'&\x1b"} {
		if strings.Contains(body, bad) {
			t.Errorf("it has %q", bad)
		}
	}
	if text := html.UnescapeString(body); !strings.Contains(text, "alert(1)<x>") {
		t.Error("it lacks the path")
	}
}

func TestThousandsOfLocks(t *testing.T) {
	n := 10000
	if testing.Short() {
		n = 1000
	}
	record(t)
	dir := t.TempDir()
	busy := filepath.Join(dir, "busy")
	hold(t, busy, dispatchJobs)
	for range 50 {
		wait(t, busy, serveJob)
	}
	for i := range n {
		l, err := openCache(filepath.Join(dir, fmt.Sprintf("cache-%05d", i)))
		if err != nil {
			t.Skipf("SKIP: thousands of locks: %v", err)
		}
		defer l.Close()
	}
	get(t, "")
	shortest := time.Hour
	var w *httptest.ResponseRecorder
	for range 5 {
		start := time.Now()
		w = get(t, "")
		shortest = min(shortest, time.Since(start))
	}
	t.Logf("%d locks: %v, %d bytes", n, shortest, w.Body.Len())
	body := w.Body.String()
	// It is to take 200 ms; a busy machine may need longer, but not for ever.
	if shortest > 5*time.Second || len(body) > 300_000 {
		t.Errorf("it takes %v and has %d bytes", shortest, len(body))
	}
	if !strings.Contains(body, fmt.Sprintf("1 to 100 of %d", n+1)) || !strings.Contains(body, `href="?from=100"`) || strings.Contains(body, ">back<") {
		t.Error("it does not come in pages")
	}
	if !strings.Contains(body, "busy</code>") {
		t.Error("the lock that others wait for is not on the first page")
	}
	last := get(t, fmt.Sprintf("?from=%d", n)).Body.String()
	if !strings.Contains(last, fmt.Sprintf("%d to %d of %d", n+1, n+1, n+1)) || strings.Contains(last, ">further<") {
		t.Error("the last page is not the last")
	}
	if s := getState(t); len(s.Held) != n+1 {
		t.Errorf("the JSON has %d locks", len(s.Held))
	}
}
