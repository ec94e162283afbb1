//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flockctx/flockctx/internal/pgtest"
	"github.com/flockctx/flockctx/internal/redistest"
	"github.com/flockctx/flockctx/locker/postgres"
)

func TestMain(m *testing.M) {
	if os.Getenv("REPLICA") != "" {
		main() // with the arguments of start
		return
	}
	os.Exit(m.Run())
}

// engines are the flags -locks, each with a real server.
func engines(t *testing.T) map[string]string {
	t.Helper()
	pg := pgtest.Start(t)
	conn, err := pgx.Connect(t.Context(), pg.DSN(""))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), postgres.Schema()); err != nil {
		t.Fatal(err)
	}
	redis := "redis://" + redistest.Start(t).Addr().String()
	return map[string]string{"files": t.TempDir(), "PostgreSQL": pg.DSN(""), "etcd": "etcd://" + startEtcd(t), "Redis": redis}
}

// startEtcd runs the server from its own module, whose dependencies this one does not
// want.
func startEtcd(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "etcdserver")
	build := exec.Command("go", "build", "-o", bin, "./cmd/etcdserver")
	build.Dir = filepath.Join("..", "..", "locker", "etcd", "etcdtest")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(bin, t.TempDir())
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); cmd.Wait() })
	addr, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(addr)
}

type replica struct {
	url string
	cmd *exec.Cmd
}

func start(t *testing.T, args ...string) *replica {
	t.Helper()
	cmd := exec.Command(os.Args[0], append([]string{"-addr", "127.0.0.1:0"}, args...)...)
	cmd.Env = append(os.Environ(), "REPLICA=1")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	logged := make(chan bool)
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-logged
		cmd.Wait()
	})
	r := bufio.NewReader(stderr)
	line, err := r.ReadString('\n')
	_, url, ok := strings.Cut(line, "http://")
	if err != nil || !ok {
		close(logged)
		t.Fatalf("%q, %v", line, err)
	}
	go func() {
		defer close(logged)
		var log bytes.Buffer
		io.Copy(&log, r)
		t.Logf("a replica's log:\n%s", log.String())
	}()
	return &replica{"http://" + strings.TrimSpace(url), cmd}
}

func get(ctx context.Context, url string) (code int, retry, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return 0, "", "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header.Get("Retry-After"), string(b), err
}

func TestReplicas(t *testing.T) {
	for engine, locks := range engines(t) {
		t.Run(engine, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			path := filepath.Join(t.TempDir(), "visitors")
			flags := []string{"-locks", locks, "-ttl", "2s", "-store", path}
			a := start(t, append(flags, "-patience", "30s")...)
			b := start(t, append(flags, "-patience", "30s")...)
			seen := map[string]bool{}
			var mu sync.Mutex
			var wg sync.WaitGroup
			const n = 60
			for i := range n {
				wg.Go(func() {
					code, _, body, err := get(ctx, []*replica{a, b}[i%2].url)
					mu.Lock()
					defer mu.Unlock()
					if err != nil || code != http.StatusOK || seen[body] {
						t.Errorf("%d, %q, %v, seen before: %v", code, body, err, seen[body])
					}
					seen[body] = true
				})
			}
			wg.Wait()
			if last := fmt.Sprintf("visitor %d\n", n); !seen[last] {
				t.Errorf("%q is missing", last)
			}

			// A slow one holds the lock: another replica's client is sent away at
			// the deadline, or goes away itself.
			slow := start(t, append(flags, "-work", "10s")...)
			short := start(t, append(flags, "-patience", "300ms")...)
			stuck := make(chan string, 1)
			go func() {
				code, _, body, err := get(ctx, slow.url)
				stuck <- fmt.Sprint(code, body, err)
			}()
			var code int
			var retry string
			for code != http.StatusServiceUnavailable { // until the slow one holds it
				var err error
				if code, retry, _, err = get(ctx, short.url); err != nil {
					t.Fatal(err)
				}
			}
			if retry != "1" {
				t.Errorf("Retry-After: %q", retry)
			}
			gone, cancelGone := context.WithTimeout(ctx, 50*time.Millisecond)
			if code, _, _, err := get(gone, a.url); err == nil {
				t.Errorf("%d beside the holder", code)
			}
			cancelGone()

			// The slow one is killed: its lock is free by itself.
			slow.cmd.Process.Kill()
			<-stuck
			if code, _, body, err := get(ctx, a.url); err != nil || code != http.StatusOK {
				t.Fatalf("after the holder was killed: %d, %q, %v", code, body, err)
			}
			if engine == "files" {
				return // a file lock stays with a process that is stopped
			}

			// A slow one is stopped for longer than the TTL, and goes on: it has
			// counted nothing.
			slow = start(t, append(flags, "-work", "1s", "-patience", "30s")...)
			go func() {
				code, _, body, err := get(ctx, slow.url)
				stuck <- fmt.Sprint(code, " ", body, err)
			}()
			for code = 0; code != http.StatusServiceUnavailable; {
				var err error
				if code, _, _, err = get(ctx, short.url); err != nil {
					t.Fatal(err)
				}
			}
			slow.cmd.Process.Signal(syscall.SIGSTOP)
			_, _, before, err := get(ctx, a.url)
			if err != nil {
				t.Fatal(err)
			}
			slow.cmd.Process.Signal(syscall.SIGCONT)
			if got := <-stuck; !strings.HasPrefix(got, "503") {
				t.Errorf("the one that was stopped: %s", got)
			}
			_, _, after, err := get(ctx, b.url)
			if err != nil {
				t.Fatal(err)
			}
			var x, y int
			fmt.Sscanf(before, "visitor %d", &x)
			if fmt.Sscanf(after, "visitor %d", &y); x == 0 || y != x+1 {
				t.Errorf("%q after %q", after, before)
			}
		})
	}
}

// TestLead: one replica leads at a time, and another goes on where it ends.
func TestLead(t *testing.T) {
	for engine, locks := range engines(t) {
		t.Run(engine, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			flags := []string{"-lead", "-locks", locks, "-ttl", "5s", "-store", filepath.Join(t.TempDir(), "report")}
			last := 0
			// leads waits until r says that it leads, and its report is a later one than last.
			leads := func(r *replica) {
				t.Helper()
				for ctx.Err() == nil {
					_, _, body, err := get(ctx, r.url)
					if err != nil {
						t.Fatal(err)
					}
					var n int
					if _, err := fmt.Sscanf(body, "leads, report %d", &n); err == nil && n > last {
						last = n
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
				t.Fatal("it does not lead")
			}
			standsBy := func(r *replica) {
				t.Helper()
				for ctx.Err() == nil {
					_, _, body, err := get(ctx, r.url)
					if err != nil {
						t.Fatal(err)
					}
					if strings.HasPrefix(body, "stands by") {
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
				t.Fatal("it goes on leading")
			}
			a := start(t, flags...)
			leads(a)
			b := start(t, flags...)
			standsBy(b)
			a.cmd.Process.Kill()
			leads(b)
			a = start(t, flags...)
			if engine != "files" { // a file lock stays with a process that is stopped
				standsBy(a)
				b.cmd.Process.Signal(syscall.SIGSTOP)
				leads(a)
				b.cmd.Process.Signal(syscall.SIGCONT)
				standsBy(b)
				leads(a)
				a, b = b, a
			}
			b.cmd.Process.Signal(syscall.SIGTERM)
			leads(a)
		})
	}
}

func TestOpen(t *testing.T) {
	for where, fenced := range map[string]bool{"postgres://u@h/d": true, "postgresql://u@h/d": true, "host=h user=u": true, "redis://h": true, "rediss://u:p@h:1/2": true, t.TempDir(): false} {
		l, done, err := open(where, time.Minute)
		if err != nil || l.Traits().Fenced != fenced {
			t.Errorf("%s: %v, %v", where, l, err)
			continue
		}
		done()
	}
	for _, where := range []string{"redis://h/x", "postgre://h/d", "https://h"} {
		if l, _, err := open(where, time.Minute); err == nil {
			t.Errorf("%s: %v", where, l)
		}
	}
}

// TestStore: the resource refuses an old token.
func TestStore(t *testing.T) {
	s := &store{path: filepath.Join(t.TempDir(), "visitors")}
	token := func(n uint64) (tk struct {
		Epoch string
		N     uint64
	}) {
		tk.Epoch, tk.N = "e", n
		return tk
	}
	if n, err := s.get(t.Context(), token(5)); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if err := s.put(t.Context(), token(5), 1); err != nil {
		t.Fatal(err)
	}
	if n, err := s.get(t.Context(), token(6)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	for _, n := range []uint64{5, 4} {
		if err := s.put(t.Context(), token(n), 2); err == nil || !strings.Contains(err.Error(), "granted to another one") {
			t.Errorf("token %d after 6: %v", n, err)
		}
	}
	if err := s.put(t.Context(), token(6), 2); err != nil {
		t.Error(err)
	}
	if n, err := s.get(t.Context(), token(7)); n != 2 || err != nil {
		t.Error(n, err)
	}
}
