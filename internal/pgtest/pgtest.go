//go:build unix

// Package pgtest starts PostgreSQL servers for tests: in a temporary folder, as a user
// other than root, on a unix socket and on a loopback address.
package pgtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

const patience = time.Minute

// A Server is a PostgreSQL server that ends with the test.
type Server struct {
	t       testing.TB
	bin     string
	dir     string // the data in data, the socket beside it
	addr    *net.TCPAddr
	cred    *syscall.Credential
	options []string
	cmd     *exec.Cmd
	dismiss func() // ends the watch over cmd
	log     *os.File
}

// Socket returns the path of the server's socket.
func (s *Server) Socket() string {
	return filepath.Join(s.dir, fmt.Sprintf(".s.PGSQL.%d", s.addr.Port))
}

// Addr returns where the server listens for TCP.
func (s *Server) Addr() string { return s.addr.String() }

// Port returns the number that the names of its sockets have, too.
func (s *Server) Port() int { return s.addr.Port }

// DSN returns how to connect to the server through the socket in the folder dir, or
// its own if dir is empty.
func (s *Server) DSN(dir string) string {
	if dir == "" {
		dir = s.dir
	}
	return fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", dir, s.addr.Port)
}

// TCP returns how to connect to the server at addr, its own address or a proxy's.
func (s *Server) TCP(addr string) string {
	return "postgres://postgres@" + addr + "/postgres?sslmode=disable"
}

// Find returns the folder of the server's programs, or "".
func Find() string {
	if dir := os.Getenv("PGBIN"); dir != "" {
		return dir
	}
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(dirs, func(a, b string) int { return version(b) - version(a) })
	for _, dir := range dirs {
		if version(dir) >= 14 {
			if _, err := os.Stat(filepath.Join(dir, "initdb")); err == nil {
				return dir
			}
		}
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path)
	}
	return ""
}

func port(n int) string { return strconv.Itoa(n) }

func version(bin string) int {
	v, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return v
}

// Start makes a database cluster and starts its server, with options as "name=value".
// It skips the test, by name, where there is no PostgreSQL.
func Start(t testing.TB, options ...string) *Server {
	t.Helper()
	s := prepare(t, options)
	out, err := s.command("initdb", "-D", s.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions").CombinedOutput()
	if err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	t.Cleanup(s.Kill) // also where Run fails half-way
	s.Run()
	return s
}

// prepare returns a server that has a folder and an address, and no data.
func prepare(t testing.TB, options []string) *Server {
	t.Helper()
	s := &Server{t: t, bin: Find(), options: options}
	if s.bin == "" {
		t.Skip("SKIP: no PostgreSQL server of version 14 or later is installed, set PGBIN to the folder of initdb")
	}
	var err error
	// t.TempDir is too long for a socket, and not the server's.
	if s.dir, err = os.MkdirTemp("", "pg"); err != nil {
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
	if s.log, err = os.Create(filepath.Join(s.dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.log.Close() })
	if s.addr, err = freeAddr(); err != nil {
		t.Fatal(err)
	}
	return s
}

// freeAddr returns a free address. The server needs it again after a crash, and a port
// that was free a moment ago may be taken by then: on a loopback address of its own it
// is as good as sure to stay free.
func freeAddr() (*net.TCPAddr, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(net.IPv4(127, byte(1+rand.N(250)), byte(rand.N(256)), byte(1+rand.N(250))).String(), "0"))
	if err != nil {
		l, err = net.Listen("tcp", "127.0.0.1:0") // not Linux
	}
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr), nil
}

func otherUser(t testing.TB) *syscall.Credential {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	t.Skip("SKIP: PostgreSQL does not run as root, and there is no user postgres or nobody")
	return nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// Dir returns the folder of the socket, which the server's user may write to.
func (s *Server) Dir() string { return s.dir }

// Command returns a command that runs as the server's user.
func (s *Server) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = s.dir
	// With the test's group, a Ctrl-C would stop the server first.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Setpgid: true}
	cmd.Env = append(os.Environ(), "LC_ALL=C", "HOME="+s.dir)
	return cmd
}

func (s *Server) command(name string, args ...string) *exec.Cmd {
	return s.Command(filepath.Join(s.bin, name), args...)
}

// Run starts the server and returns when it answers.
func (s *Server) Run() {
	s.t.Helper()
	args := []string{"-D", s.data(), "-k", s.dir, "-h", s.addr.IP.String(), "-p", port(s.addr.Port)}
	for _, o := range append([]string{"max_connections=400", "shared_buffers=16MB", "unix_socket_permissions=0777"}, s.options...) {
		args = append(args, "-c", o)
	}
	s.cmd = s.command("postgres", args...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.dismiss = s.StartWatched(s.cmd, "QUIT")
	for limit := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		out, err := s.command("pg_isready", "-q", "-h", s.dir, "-p", port(s.addr.Port)).CombinedOutput()
		if err == nil {
			return
		}
		if time.Now().After(limit) {
			s.t.Fatalf("the server does not start: %v\n%s\n%s", err, out, s.Log())
		}
	}
}

// StartWatched starts cmd, and beside it a process that sends cmd the named signal when
// the test's process is gone: after the panic of a test that takes too long nothing is
// cleaned up. Call dismiss before cmd is ended.
func (s *Server) StartWatched(cmd *exec.Cmd, signal string) (dismiss func()) {
	s.t.Helper()
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	// The end of the test's process closes the watch's input, however it comes.
	watch := s.Command("sh", "-c", `cat; kill -"$0" "$1"; kill -CONT "$1"`, signal, strconv.Itoa(cmd.Process.Pid))
	in, err := watch.StdinPipe()
	if err == nil {
		err = watch.Start()
	}
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		s.t.Fatal(err)
	}
	return func() {
		watch.Process.Kill()
		watch.Wait()
		in.Close()
	}
}

// Log returns what the server has logged.
func (s *Server) Log() []byte {
	b, _ := os.ReadFile(s.log.Name())
	return bytes.TrimSpace(b)
}

// Kill ends the server as a crash does, and returns when all its processes are gone.
func (s *Server) Kill() {
	if s.cmd == nil || s.cmd.Process == nil || s.cmd.ProcessState != nil {
		return
	}
	s.dismiss()
	s.cmd.Process.Signal(syscall.SIGQUIT) // immediate shutdown: no checkpoint
	s.cmd.Wait()
}

// Restart is a crash and a start.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	s.Run()
}

// Freeze stops the process pid, or the server's first one if pid is 0.
func (s *Server) Freeze(pid int) func() {
	s.t.Helper()
	if pid == 0 {
		pid = s.cmd.Process.Pid
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		s.t.Fatal(fmt.Errorf("freeze %d: %w", pid, err))
	}
	thaw := func() { syscall.Kill(pid, syscall.SIGCONT) }
	s.t.Cleanup(thaw)
	return thaw
}
