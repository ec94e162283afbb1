package redis_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

const patience = time.Minute

// A server is a Redis or Valkey server that ends with the test, on a socket and on a
// loopback address of its own, run by a user other than root.
type server struct {
	t       testing.TB
	program string
	dir     string
	addr    *net.TCPAddr
	cred    *syscall.Credential
	options []string
	cmd     *exec.Cmd
}

// programs are those that the tests run with, which REDIS can name.
func programs(t testing.TB) (found []string) {
	if p := os.Getenv("REDIS"); p != "" {
		return []string{p}
	}
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); err == nil {
			found = append(found, path)
		}
	}
	if len(found) == 0 {
		t.Skip("SKIP: neither redis-server nor valkey-server is installed, set REDIS to the path of one")
	}
	return found
}

// start starts a server with options as on its command line: "--name", "value".
func start(t testing.TB, options ...string) *server {
	t.Helper()
	return startProgram(t, programs(t)[0], options...)
}

func startProgram(t testing.TB, program string, options ...string) *server {
	t.Helper()
	s := &server{t: t, program: program, options: options}
	var err error
	if s.dir, err = os.MkdirTemp("", "redis"); err != nil { // t.TempDir is too long for a socket
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(s.dir) })
	if os.Geteuid() == 0 {
		s.cred = otherUser(t)
		if err := os.Chown(s.dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// The server needs its port again after a crash: on an address of its own it is as
	// good as sure to stay free.
	l, err := net.Listen("tcp", net.JoinHostPort(net.IPv4(127, byte(1+rand.N(250)), byte(rand.N(256)), byte(1+rand.N(250))).String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().(*net.TCPAddr)
	l.Close()
	t.Cleanup(s.kill)
	s.run()
	return s
}

func otherUser(t testing.TB) *syscall.Credential {
	u, err := user.Lookup("nobody")
	if err != nil {
		t.Skipf("SKIP: the server is not to run as root: %v", err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func (s *server) socket() string { return filepath.Join(s.dir, "socket") }

// run starts the server and returns when it answers.
func (s *server) run() {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(s.program, append([]string{"--bind", s.addr.IP.String(), "--port", strconv.Itoa(s.addr.Port), "--protected-mode", "no",
		"--unixsocket", s.socket(), "--unixsocketperm", "777", "--save", ""}, s.options...)...)
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = s.dir, log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		if s.cred != nil && os.IsPermission(err) {
			s.t.Skipf("SKIP: the server cannot run as another user here: %v", err)
		}
		s.t.Fatal(err)
	}
	c := goredis.NewClient(&goredis.Options{Network: "unix", Addr: s.socket(), MaxRetries: -1})
	defer c.Close()
	for limit := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if err = c.Ping(context.Background()).Err(); err == nil || goredis.HasErrorPrefix(err, "NOAUTH") {
			return
		}
		if time.Now().After(limit) {
			text, _ := os.ReadFile(log.Name())
			s.t.Fatalf("%s does not start: %v\n%s", s.program, err, text)
		}
	}
}

// kill ends the server as a crash does.
func (s *server) kill() {
	if s.cmd != nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
		s.cmd = nil
	}
}

func (s *server) restart() {
	s.kill()
	s.run()
}

// client returns one for the server's socket, or another's.
func (s *server) client(socket string) *goredis.Client {
	if socket == "" {
		socket = s.socket()
	}
	return newClient(s.t, socket)
}

func newClient(t testing.TB, socket string) *goredis.Client {
	c := goredis.NewClient(clientOptions(socket))
	t.Cleanup(func() { c.Close() })
	return c
}

func clientOptions(socket string) *goredis.Options {
	return &goredis.Options{Network: "unix", Addr: socket, ReadTimeout: ttl / 3, PoolSize: 20, MaxRetries: -1}
}

// do runs a command on the server.
func (s *server) do(args ...any) any {
	s.t.Helper()
	c := goredis.NewClient(clientOptions(s.socket()))
	defer c.Close()
	r, err := c.Do(context.Background(), args...).Result()
	if err != nil && err != goredis.Nil {
		s.t.Fatalf("%v: %v", args, err)
	}
	return r
}

// lines returns the claims that the hash has.
func (s *server) lines() (all []string) {
	s.t.Helper()
	c := goredis.NewClient(clientOptions(s.socket()))
	defer c.Close()
	fields, err := c.HGetAll(context.Background(), "flockctx").Result()
	if err != nil {
		s.t.Fatal(err)
	}
	for name, text := range fields {
		if len(name) > 2 && name[:2] == "n:" {
			all = append(all, fmt.Sprintf("%q: %s", name[2:], text))
		}
	}
	return all
}
