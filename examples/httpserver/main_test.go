package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/flockctx/flockctx"
	"github.com/flockctx/flockctx/flockdebug"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves the visitors in path. A value arrives on entered when a request has
// reached the handler.
func start(t *testing.T, path string, patience time.Duration) (url string, entered chan struct{}, logged chan string) {
	t.Helper()
	entered, logged = make(chan struct{}, 100), make(chan string, 100)
	v := &visitors{path: path, patience: patience, logf: func(format string, args ...any) {
		logged <- fmt.Sprintf(format, args...)
	}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		v.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		srv.Close()
	})
	return srv.URL, entered, logged
}

func tempPath(t *testing.T) string { return filepath.Join(t.TempDir(), "visitors") }

func get(url string) (*http.Response, string, error) {
	resp, err := http.Get(url)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

func TestEveryVisitorIsCounted(t *testing.T) {
	path := tempPath(t)
	url, _, _ := start(t, path, time.Minute)
	const n = 50
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			resp, body, err := get(url)
			if err != nil || resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, "visitor ") {
				t.Errorf("%v: %q", err, body)
			}
		})
	}
	wg.Wait()
	if b, err := os.ReadFile(path); err != nil || string(b) != fmt.Sprintln(n) {
		t.Errorf("%q, %v", b, err)
	}
}

func TestALockedFileIsBusy(t *testing.T) {
	path := tempPath(t)
	url, _, _ := start(t, path, 50*time.Millisecond)
	l, err := flockctx.TryLock(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	resp, body, err := get(url)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "1" {
		t.Errorf("%v: %q, %v", resp.Status, body, resp.Header)
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	// On a busy machine even a free lock can take longer than 50 ms.
	url, _, _ = start(t, path, time.Minute)
	if resp, body, err := get(url); err != nil || resp.StatusCode != http.StatusOK || body != "visitor 1\n" {
		t.Errorf("after Unlock: %v %q", err, body)
	}
}

func TestAClientThatGoesAwayStopsWaiting(t *testing.T) {
	path := tempPath(t)
	url, entered, logged := start(t, path, time.Hour)
	l, err := flockctx.TryLock(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-entered
		cancel()
	}()
	if resp, err := http.DefaultClient.Do(req); err == nil {
		resp.Body.Close()
		t.Fatalf("answered with %v beside the holder", resp.Status)
	}
	select {
	case line := <-logged:
		if !strings.HasPrefix(line, "the client went away: ") || !strings.Contains(line, path) {
			t.Error(line)
		}
	case <-time.After(time.Minute):
		t.Fatal("the handler still waits for the lock")
	}
}

func TestServeEnds(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- serve(ctx, ln, http.NotFoundHandler()) }()
	if resp, _, err := get("http://" + ln.Addr().String()); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Error(err)
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestTheDebugPageShowsWhoHoldsTheFile(t *testing.T) {
	defer flockdebug.Start()()
	path := tempPath(t)
	l, err := flockctx.TryLock(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	srv := httptest.NewServer(debugPages())
	defer srv.Close()
	defer http.DefaultClient.CloseIdleConnections()
	resp, body, err := get(srv.URL + "/debug/locks")
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(body, path) || !strings.Contains(body, "TestTheDebugPageShowsWhoHoldsTheFile") {
		t.Errorf("%v: %q", err, body)
	}
}

func TestTheMetricsCountTheVisitors(t *testing.T) {
	pages, tracer := metricsPages()
	defer flockctx.SetTracer(flockctx.SetTracer(tracer))
	path := tempPath(t)
	url, _, _ := start(t, path, time.Minute)
	for range 2 {
		if _, _, err := get(url); err != nil {
			t.Fatal(err)
		}
	}
	w := httptest.NewRecorder()
	pages.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	const want = `flockctx_wait_duration_seconds_count{mechanism="flock",mode="exclusive",operation="lock",outcome="acquired"} 2`
	if !strings.Contains(w.Body.String(), want+"\n") {
		t.Errorf("no %s in:\n%s", want, w.Body)
	}
}
