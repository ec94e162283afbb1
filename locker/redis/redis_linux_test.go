package redis_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/flockctx/flockctx/internal/leased"
	"github.com/flockctx/flockctx/locker"
	"github.com/flockctx/flockctx/locker/redis"
)

func ended(t testing.TB, h locker.Held, within time.Duration) {
	t.Helper()
	began := time.Now()
	select {
	case <-h.Context().Done():
		if cause := context.Cause(h.Context()); !errors.Is(cause, locker.ErrLost) {
			t.Errorf("it ended with %v", cause)
		}
		t.Logf("noticed after %v", time.Since(began))
	case <-time.After(within):
		t.Fatalf("the holder did not notice within %v", within)
	}
}

// What a server has forgotten may be held: nothing is granted for a TTL after it was
// restarted without its data, or emptied, by a command or by eviction. The holder, whom it
// answers, notices with the next renewal.
func TestLostMemory(t *testing.T) {
	for _, c := range []struct {
		name string
		lose func(t *testing.T, s *server)
	}{
		{"FLUSHALL", func(t *testing.T, s *server) { s.do("FLUSHALL") }},
		{"SCRIPT FLUSH and FLUSHDB", func(t *testing.T, s *server) { s.do("SCRIPT", "FLUSH"); s.do("FLUSHDB", "ASYNC") }},
		{"restart", func(t *testing.T, s *server) { s.Restart() }},
		{"eviction", func(t *testing.T, s *server) {
			s.do("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
			s.do("CONFIG", "SET", "maxmemory", "1")
			for s.do("EXISTS", "flockctx") == int64(1) {
				func() {
					c := goredis.NewClient(clientOptions(s.Socket()))
					defer c.Close()
					c.Set(context.Background(), "filler", "x", 0) // it is refused when nothing is left to evict
				}()
			}
			s.do("CONFIG", "SET", "maxmemory", "0")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			loud(t, s)
			l := open(t, s.client(""))
			h := lock(t, l, "lost")
			c.lose(t, s)
			other := open(t, s.client(""))
			busy(t, other, "lost")
			began := time.Now()
			ended(t, h, patience)
			if h.Context().Err() == nil {
				t.Error("the context has not ended")
			}
			next := lock(t, other, "lost")
			if quiet := time.Since(began); quiet < ttl-ttl/10-time.Second {
				t.Errorf("granted %v after the loss, within the TTL of %v", quiet, ttl)
			}
			a, _ := h.Token()
			b, _ := next.Token()
			if b.N <= a.N {
				t.Errorf("token %v after %v", b, a)
			}
			if err := h.Unlock(within(t, patience)); !errors.Is(err, locker.ErrLost) {
				t.Errorf("Unlock of what was lost: %v", err)
			}
			unlock(t, next)
		})
	}
}

// A server that has its data again still does not know of what it has lost with the last
// moments before its end. Who holds what is there goes on.
func TestRestartWithData(t *testing.T) {
	t.Parallel()
	s := start(t, "--appendonly", "yes", "--appendfsync", "always")
	loud(t, s)
	l := open(t, s.client(""))
	h := lock(t, l, "kept")
	free := open(t, s.client(""))
	s.Restart()
	busy(t, free, "never locked")
	began := time.Now()
	unlock(t, lock(t, free, "never locked"))
	t.Logf("quiet for %v", time.Since(began))
	if time.Since(began) < ttl/2 {
		t.Errorf("granted %v after the restart", time.Since(began))
	}
	busy(t, free, "kept")
	unlock(t, h)
	unlock(t, lock(t, free, "kept"))
}

// restarts of a server, with and without its data, while workers lock: by the contexts never
// two at once. With quiet turned off, which a test can do by hand, there are.
func TestRestarts(t *testing.T) {
	for _, append := range []string{"no", "always"} {
		for _, control := range []bool{false, true} {
			if control && append == "always" {
				continue // there is nothing to forget
			}
			name := "appendonly " + append
			if control {
				name += ", control"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				var options []string
				if append == "always" {
					options = []string{"--appendonly", "yes", "--appendfsync", "always"}
				}
				s := start(t, options...)
				loud(t, s)
				overlaps, n := 0, long(2, 60)
				for i := range n {
					a, b := open(t, s.client("")), open(t, s.client(""))
					name := "restart " + strconv.Itoa(i)
					h := lock(t, a, name)
					s.Restart()
					if control {
						// As if the server were the one of before, for ever.
						info := s.do("INFO").(string)
						field := func(name string) string { return regexp.MustCompile(name + `:(\w+)`).FindStringSubmatch(info)[1] }
						s.do("HSET", "flockctx", "run", field("run_id")+"-"+field("master_replid"), "since", "1", "ttl", "1")
					}
					if append == "always" {
						// The holder keeps it, and the next one does not get it.
						unlock(t, lock(t, b, "quiet "+strconv.Itoa(i)))
						if early, err := b.TryLock(within(t, patience), name, locker.Exclusive); err == nil {
							if h.Context().Err() == nil {
								overlaps++
							}
							early.Unlock(within(t, patience))
						}
						if err := h.Unlock(within(t, patience)); err != nil {
							t.Errorf("what was on disk is lost: %v", err)
						}
					}
					next := lock(t, b, name)
					if h.Context().Err() == nil {
						overlaps++
					}
					h.Unlock(within(t, patience))
					if err := next.Unlock(within(t, patience)); err != nil && !errors.Is(err, locker.ErrLost) {
						t.Error(err)
					}
				}
				t.Logf("%d restarts, %d overlaps", n, overlaps)
				if control && overlaps == 0 {
					t.Error("no overlap: the test is blind")
				}
				if !control && overlaps > 0 {
					t.Errorf("%d overlaps", overlaps)
				}
			})
		}
	}
}

// A replica that is promoted is another server: it grants nothing for a TTL, however much
// of the data it has. The lock that it has is kept by its holder, who comes to it.
func TestPromotion(t *testing.T) {
	t.Parallel()
	overlaps, n := 0, long(2, 20)
	for range n {
		func() {
			primary := start(t)
			loud(t, primary)
			replica := start(t)
			replica.follow(primary)
			a := open(t, primary.client(""))
			h := lock(t, a, "promoted")
			primary.Kill()
			replica.do("REPLICAOF", "NO", "ONE")
			b := open(t, replica.client(""))
			busy(t, b, "promoted")
			busy(t, b, "another")
			next := lock(t, b, "promoted")
			if h.Context().Err() == nil {
				overlaps++
			}
			x, _ := h.Token()
			y, _ := next.Token()
			if y.N <= x.N {
				t.Errorf("token %v after %v", y, x)
			}
			unlock(t, next)
			replica.Kill()
		}()
	}
	t.Logf("%d promotions, %d overlaps", n, overlaps)
	if overlaps > 0 {
		t.Errorf("%d overlaps", overlaps)
	}
}

// A server that stands still for less than the TTL costs nobody a lock; one that stands still
// for longer ends the holder's context before anybody else is granted it.
func TestFrozenServer(t *testing.T) {
	for name, still := range map[string]time.Duration{"shorter than the TTL": ttl / 2, "longer than the TTL": 2 * ttl} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			loud(t, s)
			h := lock(t, open(t, s.client("")), "frozen")
			next := make(chan locker.Held)
			other := open(t, s.client(""))
			go func() { next <- lock(t, other, "frozen") }()
			for other.(*leased.Engine).Waiting("frozen") == 0 {
				time.Sleep(time.Millisecond)
			}
			s.Signal(syscall.SIGSTOP)
			time.Sleep(still)
			s.Signal(syscall.SIGCONT)
			if still < ttl {
				time.Sleep(ttl)
				if err := h.Context().Err(); err != nil {
					t.Errorf("after %v: %v", still, context.Cause(h.Context()))
				}
				unlock(t, h)
				unlock(t, <-next)
				return
			}
			n := <-next
			if h.Context().Err() == nil {
				t.Error("two hold it")
			}
			if err := h.Unlock(within(t, patience)); !errors.Is(err, locker.ErrLost) {
				t.Errorf("Unlock of what was lost: %v", err)
			}
			unlock(t, n)
		})
	}
}

// Over TLS, which many a managed service demands.
func TestTLS(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"redis.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "redis") // which the server's user may enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cert, certKey := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, certKey: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	s := start(t, "--tls-port", strconv.Itoa(port), "--tls-cert-file", cert, "--tls-key-file", certKey, "--tls-auth-clients", "no")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	client := func() *goredis.Client {
		c := goredis.NewClient(&goredis.Options{
			Addr:      net.JoinHostPort(s.Addr().IP.String(), strconv.Itoa(port)),
			TLSConfig: &tls.Config{ServerName: "redis.test", RootCAs: roots}, ReadTimeout: ttl / 3,
		})
		t.Cleanup(func() { c.Close() })
		return c
	}
	a, b := open(t, client()), open(t, client())
	h := lock(t, a, "tls")
	next := make(chan locker.Held)
	go func() { next <- lock(t, b, "tls") }()
	for b.(*leased.Engine).Waiting("tls") == 0 {
		time.Sleep(time.Millisecond)
	}
	unlock(t, h)
	unlock(t, <-next)

	bad := goredis.NewClient(&goredis.Options{Addr: net.JoinHostPort(s.Addr().IP.String(), strconv.Itoa(port)), TLSConfig: &tls.Config{ServerName: "redis.test"}, MaxRetries: -1})
	defer bad.Close()
	if _, err := open(t, bad).Lock(within(t, 10*time.Second), "tls", locker.Exclusive); !errors.Is(err, locker.ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("with a certificate that is not trusted: %v", err)
	}
}

// The user needs the rights that the documentation names, and none that a managed service
// keeps for itself. Without those for channels, waiters look by themselves.
func TestRights(t *testing.T) {
	t.Parallel()
	s := start(t)
	rights := []any{"-@all", "+eval", "+evalsha", "+time", "+info", "+hget", "+hmget", "+hset", "+hdel", "+hscan", "+hello", "~locks"}
	s.do(append([]any{"ACL", "SETUSER", "app", "on", ">secret"}, append(rights, "+publish", "+subscribe", "+unsubscribe", "+ping", "resetchannels", "&locks:*")...)...)
	s.do(append([]any{"ACL", "SETUSER", "deaf", "on", ">secret", "resetchannels"}, rights...)...)
	s.do("ACL", "SETUSER", "none", "on", ">secret", "-@all", "+eval", "+evalsha", "~locks")
	connect := func(user string) locker.Locker {
		o := clientOptions(s.Socket())
		o.Username, o.Password = user, "secret"
		c := goredis.NewClient(o)
		t.Cleanup(func() { c.Close() })
		l := redis.New(c, &redis.Options{TTL: ttl, Key: "locks"})
		t.Cleanup(func() { l.(interface{ Close() error }).Close() })
		return l
	}
	for _, user := range []string{"app", "deaf"} {
		a, b := connect(user), connect(user)
		h := lock(t, a, "rights")
		got := make(chan locker.Held, 1)
		go func() { got <- lock(t, b, "rights") }()
		for n := 0; n < 2; time.Sleep(10 * time.Millisecond) {
			all, err := a.(locker.Inspector).Holders(within(t, patience), "rights")
			if err != nil {
				t.Fatal(err)
			}
			n = len(all)
		}
		time.Sleep(100 * time.Millisecond)
		unlock(t, h)
		began := time.Now()
		unlock(t, <-got)
		t.Logf("%s: the next one had it after %v", user, time.Since(began))
	}
	if _, err := connect("none").Lock(within(t, patience), "x", locker.Exclusive); err == nil || !strings.Contains(err.Error(), "needs EVAL") || errors.Is(err, locker.ErrUnavailable) {
		t.Errorf("without rights: %v", err)
	}
	o := clientOptions(s.Socket())
	o.Username, o.Password = "app", "wrong"
	c := goredis.NewClient(o)
	defer c.Close()
	if _, err := redis.New(c, nil).Lock(within(t, patience), "x", locker.Exclusive); err == nil || !strings.Contains(err.Error(), "credentials") {
		t.Errorf("with a wrong password: %v", err)
	}
}

// In a cluster, the key says which shard has the locks.
func TestCluster(t *testing.T) {
	t.Parallel()
	a := startCluster(t, 2, 2, 5*time.Second)[0]
	cluster := func() goredis.UniversalClient {
		c := goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: []string{a.Addr().String()}, ReadTimeout: ttl / 3})
		t.Cleanup(func() { c.Close() })
		return c
	}
	used := map[bool]bool{}
	for i := range 4 {
		opts := &redis.Options{TTL: time.Second, Key: fmt.Sprintf("locks-%d", i)}
		one, two := redis.New(cluster(), opts), redis.New(cluster(), opts)
		h := lock(t, one, "cluster")
		got := make(chan locker.Held, 1)
		go func() { got <- lock(t, two, "cluster") }()
		time.Sleep(50 * time.Millisecond)
		unlock(t, h)
		unlock(t, <-got)
		for _, l := range []locker.Locker{one, two} {
			l.(interface{ Close() error }).Close()
		}
		used[a.has(opts.Key)] = true
	}
	if len(used) != 2 {
		t.Error("all keys are on one shard")
	}
}

// has reports whether the server has the key itself.
func (s *server) has(key string) bool {
	c := goredis.NewClient(clientOptions(s.Socket()))
	defer c.Close()
	n, err := c.Exists(context.Background(), key).Result()
	return err == nil && n == 1
}

// A waiter costs the server a look every third of a TTL, and no connection.
func TestWaitersAtRest(t *testing.T) {
	t.Parallel()
	s := start(t)
	loud(t, s)
	holder := open(t, s.client(""))
	h := lock(t, holder, "rest")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	const processes, each = 5, 40
	for range processes {
		l := open(t, s.client(""))
		for range each {
			go func() {
				_, err := l.Lock(ctx, "rest", locker.Exclusive)
				done <- err
			}()
		}
	}
	for {
		all, err := holder.(locker.Inspector).Holders(within(t, patience), "rest")
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 1+processes {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(ttl / 3)
	count := func() int {
		for _, line := range strings.Split(s.do("INFO", "stats").(string), "\r\n") {
			if v, ok := strings.CutPrefix(line, "total_commands_processed:"); ok {
				n, _ := strconv.Atoi(v)
				return n
			}
		}
		return 0
	}
	before := count()
	time.Sleep(ttl)
	// 3 looks of each Locker, 7 renewals, 15 commands or so in each script.
	n := count() - before
	t.Logf("%d waiters of %d Lockers: %d commands in %v, those in scripts included", processes*each, processes, n, ttl)
	if n > 1000 {
		t.Errorf("%d commands in %v", n, ttl)
	}
	cancel()
	for range processes * each {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	unlock(t, h)
}

// Who holds, who waits, and what they have to say.
func TestHolders(t *testing.T) {
	t.Parallel()
	s := start(t)
	loud(t, s)
	a, b := open(t, s.client("")), open(t, s.client(""))
	const note = "a note, with \"all\" of\nit = %20 ✓"
	began := time.Now().Add(-time.Second)
	h, err := a.Lock(locker.WithNote(within(t, patience), note), "who", locker.Shared)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan locker.Held)
	go func() { done <- lock(t, b, "who") }()
	var all []locker.Holder
	for len(all) < 2 {
		if all, err = a.(locker.Inspector).Holders(within(t, patience), "who"); err != nil {
			t.Fatal(err)
		}
	}
	host, _ := os.Hostname()
	if x := all[0]; x.Waiting || x.Mode != locker.Shared || x.Note != note || x.Host != host || x.PID != os.Getpid() || x.Since.Before(began) {
		t.Errorf("the holder: %+v", x)
	}
	if x := all[1]; !x.Waiting || x.Mode != locker.Exclusive || x.Note != "" || x.PID != os.Getpid() {
		t.Errorf("the waiter: %+v", x)
	}
	unlock(t, h)
	next := <-done
	all, err = a.(locker.Inspector).Holders(within(t, patience), "who")
	if token, _ := next.Token(); err != nil || len(all) != 1 || all[0].Token != token {
		t.Errorf("%+v, %v, want token %v", all, err, token)
	}
	unlock(t, next)
	if lines := s.lines(); len(lines) > 0 {
		t.Errorf("left: %q", lines)
	}
}

// An expired grant is none, also for the claim that has it: when its answer was lost, and
// its process cut off for a TTL, others may have had the lock since, on a server that has
// forgotten that.
func TestExpiredGrantIsNone(t *testing.T) {
	t.Parallel()
	s := start(t)
	loud(t, s)
	now := time.Now().UnixMicro()
	s.do("HSET", "flockctx", "run", "another", "n:expired", fmt.Sprintf("ID 0 %d %d %d 7 OWNER 1 h= n=", now-9e6, now-9e6, now-1e6))
	got := s.do("EVAL", script(t, "claim.lua"), 1, "flockctx", "expired", "ID", "OWNER", 0, 0, ttl.Microseconds(), 0, "1 h= n=")
	if a, ok := got.([]any); !ok || len(a) != 3 || a[0] != int64(0) {
		t.Errorf("claimed again by its ID on a server that is quiet: %v", got)
	}
}

// script returns a script as the server is sent it.
func script(t *testing.T, name string) string {
	t.Helper()
	common, err := os.ReadFile("common.lua")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(common) + string(text)
}

// Bad input and servers that cannot serve have clear errors.
func TestBadInput(t *testing.T) {
	t.Parallel()
	ctx := within(t, patience)
	if _, err := redis.New(nil, nil).Lock(ctx, "x", locker.Exclusive); err == nil || !strings.Contains(err.Error(), "no client") {
		t.Errorf("nil client: %v", err)
	}
	s := start(t)
	if _, err := redis.New(s.client(""), &redis.Options{TTL: time.Millisecond}).Lock(ctx, "x", locker.Exclusive); err == nil || !strings.Contains(err.Error(), "TTL") {
		t.Errorf("short TTL: %v", err)
	}
	s.do("SET", "flockctx", "something else")
	if _, err := redis.New(s.client(""), nil).Lock(ctx, "x", locker.Exclusive); err == nil || !strings.Contains(err.Error(), "something else than the locks") {
		t.Errorf("a key of another type: %v", err)
	}
	nowhere := goredis.NewClient(clientOptions(filepath.Join(t.TempDir(), "none")))
	defer nowhere.Close()
	short, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := redis.New(nowhere, nil).Lock(short, "x", locker.Exclusive); !errors.Is(err, locker.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no server: %v", err)
	}
	l := redis.New(s.client(""), nil)
	if err := l.(interface{ Close() error }).Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Lock(ctx, "x", locker.Exclusive); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
