package flockprom_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/flockctx/flockctx"
	flockprom "github.com/flockctx/flockctx/observe/prometheus"
)

const (
	nobody   = 65534
	patience = time.Minute
)

// look skips the test where the program is not installed.
func look(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("SKIP: %s: no %s here (Debian: prometheus)", t.Name(), program)
	}
	return path
}

// startServer starts Prometheus on a port that is free, as another user where this one is
// root, to scrape target. It returns the server's address.
func startServer(t *testing.T, target string) string {
	t.Helper()
	program := look(t, "prometheus")
	// Those above a T.TempDir are closed to others.
	dir, err := os.MkdirTemp("", "flockprom")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := filepath.Join(dir, "prometheus.yml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, `
global: {scrape_interval: 100ms}
scrape_configs:
- job_name: locks
  static_configs: [{targets: [%q]}]
`, target), 0o644))
	cmd := exec.Command(program, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address=127.0.0.1:0", "--log.format=json")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		must(t, os.Chown(dir, nobody, nobody))
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	logs, err := cmd.StderrPipe()
	must(t, err)
	runtime.LockOSThread() // whose end would be that of the server
	must(t, cmd.Start())

	var log strings.Builder
	address := make(chan string, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(address)
		for lines := bufio.NewScanner(logs); lines.Scan(); {
			fmt.Fprintln(&log, lines.Text())
			var line struct{ Msg, Address string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "Listening on" {
				address <- line.Address
			}
		}
	}()
	hung := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	t.Cleanup(func() {
		hung.Reset(patience)
		cmd.Process.Signal(syscall.SIGTERM)
		<-read
		hung.Stop()
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("prometheus: %v\n%s", err, log.String())
		}
		runtime.UnlockOSThread()
	})
	server, ok := <-address
	if hung.Stop(); !ok {
		t.Fatal("the server does not say where it listens")
	}
	return server
}

// query asks the server, and returns what it answers.
func query(t *testing.T, server, expr string) (results []struct{ Value [2]any }) {
	t.Helper()
	resp, err := http.Get("http://" + server + "/api/v1/query?query=" + url.QueryEscape(expr))
	must(t, err)
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusServiceUnavailable { // it is starting
		return nil
	}
	var answer struct {
		Status, Error string
		Data          struct{ Result []struct{ Value [2]any } }
	}
	must(t, json.NewDecoder(resp.Body).Decode(&answer))
	if answer.Status != "success" {
		t.Fatalf("%s: %s", expr, answer.Error)
	}
	return answer.Data.Result
}

// eventually waits until the server answers expr with the one value want.
func eventually(t *testing.T, server, expr, want string) {
	t.Helper()
	for limit := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		got := query(t, server, expr)
		if len(got) == 1 && got[0].Value[1] == want {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%s is %v, want %s", expr, got, want)
		}
	}
}

func TestThePrometheusServerReadsIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file.lock")
	c := flockprom.New(nil)
	site := httptest.NewServer(handler(t, c))
	defer site.Close()
	defer http.DefaultClient.CloseIdleConnections()
	server := startServer(t, strings.TrimPrefix(site.URL, "http://"))

	o := &flockctx.Options{Tracer: c.Tracer()}
	holder, err := flockctx.Lock(t.Context(), path, o)
	must(t, err)
	granted := make(chan error)
	l := flockctx.New(path, o)
	go func() { granted <- l.Lock(t.Context()) }()
	eventually(t, server, `sum(flockctx_waiting_goroutines)`, "1")
	eventually(t, server, `sum(flockctx_held_locks)`, "1")
	eventually(t, server, `sum(flockctx_wait_duration_seconds_count{outcome="acquired"})`, "1")
	flockctx.TryLock(path, o)
	must(t, holder.Close())
	must(t, <-granted)
	eventually(t, server, `sum(flockctx_waiting_goroutines)`, "0")
	eventually(t, server, `sum(flockctx_wait_duration_seconds_count{outcome="acquired"})`, "2")
	eventually(t, server, `flockctx_failures_total{reason="locked"}`, "1")
	eventually(t, server, `up`, "1")
	must(t, l.Close())
	eventually(t, server, `flockctx_hold_duration_seconds_count`, "2")
	eventually(t, server, `sum(flockctx_held_locks)`, "0")

	// What the documentation would ask.
	page, err := os.ReadFile("../../docs/metrics.md")
	must(t, err)
	samples := regexp.MustCompile("(?s)```promql\n(.*?)\n```").FindAllSubmatch(page, -1)
	if len(samples) < 5 {
		t.Errorf("docs/metrics.md has %d queries", len(samples))
	}
	for _, m := range samples {
		// The alert is for what is not so now.
		expr := strings.TrimSuffix(string(m[1]), " > 0")
		if got := query(t, server, expr); len(got) == 0 {
			t.Errorf("nothing answers %s", expr)
		}
	}
}

func TestPromtoolHasNoComplaint(t *testing.T) {
	cmd := exec.Command(look(t, "promtool"), "check", "metrics")
	c := flockprom.New(nil)
	path := filepath.Join(t.TempDir(), "file.lock")
	l, err := flockctx.Lock(t.Context(), path, &flockctx.Options{Tracer: c.Tracer()})
	must(t, err)
	flockctx.TryLock(path, &flockctx.Options{Tracer: c.Tracer()})
	must(t, l.Close())
	text, _ := scrape(t, handler(t, c))
	for _, name := range []string{"wait_duration_seconds", "hold_duration_seconds", "failures_total", "held_locks", "waiting_goroutines"} {
		if !strings.Contains(text, "# HELP flockctx_"+name+" ") {
			t.Errorf("no %s in the scrape", name)
		}
	}
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) != 0 {
		t.Errorf("promtool: %v: %s", err, out)
	}
}
