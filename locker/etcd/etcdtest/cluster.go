//go:build unix

// Package etcdtest starts etcd servers for tests, as child processes of the test
// binary. It is a module of its own because the server's dependencies are many, and
// users of the adapter shall not have them.
package etcdtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

const (
	serverEnv = "ETCDTEST_SERVER"
	patience  = time.Minute
)

// serverConfig is what a child process gets to know.
type serverConfig struct {
	Name, Dir, Client, Peer, Cluster string
	Sync                             bool
}

// Main runs an etcd server if the process was started as one, and does not return then.
// TestMain calls it first.
func Main() {
	spec := os.Getenv(serverEnv)
	if spec == "" {
		return
	}
	var sc serverConfig
	err := json.Unmarshal([]byte(spec), &sc)
	if err == nil {
		err = serve(sc)
	}
	fmt.Fprintln(os.Stderr, "etcd server:", err)
	os.Exit(1)
}

func serve(sc serverConfig) error {
	c := embed.NewConfig()
	c.Name, c.Dir = sc.Name, sc.Dir
	client, err := url.Parse(sc.Client)
	if err != nil {
		return err
	}
	peer, err := url.Parse(sc.Peer)
	if err != nil {
		return err
	}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	c.InitialCluster = sc.Cluster
	c.InitialClusterToken = "etcdtest"
	// Only processes are killed here, never the machine, and what the tests share is
	// above all the disk.
	c.UnsafeNoFsync = !sc.Sync
	c.LogLevel = "error"
	c.LogOutputs = []string{filepath.Join(sc.Dir, "..", sc.Name+".log")}
	e, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	// The parent holds the other end: without it, the server ends too.
	go func() { io.Copy(io.Discard, os.Stdin); os.Exit(0) }()
	return <-e.Err()
}

// A Server is a member of a Cluster.
type Server struct {
	config serverConfig
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	frozen bool
}

// Addr returns where the server's clients connect.
func (s *Server) Addr() string { return strings.TrimPrefix(s.config.Client, "http://") }

// Run starts the server again. It answers some time later.
func (s *Server) Run() {
	if err := s.start(); err != nil {
		panic(err)
	}
}

func (s *Server) start() error {
	spec, err := json.Marshal(s.config)
	if err != nil {
		return err
	}
	s.cmd = exec.Command(os.Args[0])
	s.cmd.Env = append(os.Environ(), serverEnv+"="+string(spec))
	s.cmd.Stderr = os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		return err
	}
	s.frozen = false
	return s.cmd.Start()
}

// Kill ends the server without a chance to say anything.
func (s *Server) Kill() {
	if s.cmd != nil && s.cmd.Process != nil && s.cmd.ProcessState == nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
	}
}

// Freeze stops the server's process, Thaw lets it go on.
func (s *Server) Freeze() { s.cmd.Process.Signal(syscall.SIGSTOP); s.frozen = true }
func (s *Server) Thaw()   { s.cmd.Process.Signal(syscall.SIGCONT); s.frozen = false }

// CPU returns the processor time that the server has used, in steps of some milliseconds.
// It is 0 on systems without /proc.
func (s *Server) CPU() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ") // after the command's name
	fields := strings.Fields(rest)
	var user, system int64
	fmt.Sscan(fields[11], &user)
	fmt.Sscan(fields[12], &system)
	return time.Duration(user+system) * time.Second / 100 // Linux: USER_HZ
}

// A Cluster is an etcd cluster.
type Cluster struct {
	t       testing.TB // nil after Open
	Servers []*Server
}

// Start starts a cluster of n servers and returns when it answers. It ends with the test.
func Start(t testing.TB, n int) *Cluster {
	t.Helper()
	return start(t, n, false)
}

// StartSynced is Start for measuring: the servers write to the disk as in earnest.
func StartSynced(t testing.TB, n int) *Cluster {
	t.Helper()
	return start(t, n, true)
}

func start(t testing.TB, n int, sync bool) *Cluster {
	t.Helper()
	c, err := open(t.TempDir(), n, sync)
	if err != nil {
		t.Fatal(err)
	}
	c.t = t
	t.Cleanup(c.Close)
	return c
}

// Open starts a cluster of n servers with their data in dir and returns when it answers.
func Open(dir string, n int) (*Cluster, error) { return open(dir, n, true) }

func open(dir string, n int, sync bool) (*Cluster, error) {
	c := &Cluster{}
	var cluster []string
	for i := range n {
		name := fmt.Sprintf("s%d", i)
		client, peer, err := freeAddrs()
		if err != nil {
			return nil, err
		}
		s := &Server{config: serverConfig{
			Name:   name,
			Sync:   sync,
			Dir:    filepath.Join(dir, name),
			Client: "http://" + client,
			Peer:   "http://" + peer,
		}}
		cluster = append(cluster, name+"="+s.config.Peer)
		c.Servers = append(c.Servers, s)
	}
	for _, s := range c.Servers {
		s.config.Cluster = strings.Join(cluster, ",")
		if err := s.start(); err != nil {
			c.Close()
			return nil, err
		}
	}
	if err := c.ready(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close kills the servers.
func (c *Cluster) Close() {
	for _, s := range c.Servers {
		s.Kill()
	}
}

// freeAddrs returns two free addresses. A server needs the same ones again after a
// crash, and ports that were free a moment ago may be taken by then: on a loopback
// address of its own they are as good as sure to stay free.
func freeAddrs() (a, b string, err error) {
	ip := net.IPv4(127, byte(1+rand.N(250)), byte(rand.N(256)), byte(1+rand.N(250))).String()
	var l, m net.Listener
	if l, err = net.Listen("tcp", ip+":0"); err != nil {
		ip = "127.0.0.1" // not Linux
		if l, err = net.Listen("tcp", ip+":0"); err != nil {
			return "", "", err
		}
	}
	defer l.Close()
	if m, err = net.Listen("tcp", ip+":0"); err != nil {
		return "", "", err
	}
	defer m.Close()
	return l.Addr().String(), m.Addr().String(), nil
}

// Endpoints returns the servers' addresses.
func (c *Cluster) Endpoints() []string {
	var all []string
	for _, s := range c.Servers {
		all = append(all, s.Addr())
	}
	return all
}

// Client returns a client of the endpoints, or of all servers. It is closed at the end
// of the test.
func (c *Cluster) Client(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	if len(endpoints) == 0 {
		endpoints = c.Endpoints()
	}
	client, err := NewClient(endpoints...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// NewClient returns a client that logs nothing.
func NewClient(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

// Ready waits until the cluster takes writes.
func (c *Cluster) Ready() {
	c.t.Helper()
	if err := c.ready(); err != nil {
		c.t.Fatal(err)
	}
}

func (c *Cluster) ready() error {
	client, err := NewClient(c.Endpoints()...)
	if err != nil {
		return err
	}
	defer client.Close()
	for limit := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		_, err := client.Put(ctx, "etcdtest", "ready")
		cancel()
		if err == nil {
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("the cluster is not ready: %w", err)
		}
	}
}

// Leader returns the cluster's leader, and the other servers.
func (c *Cluster) Leader() (leader *Server, others []*Server) {
	c.t.Helper()
	for limit := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		leader, others = nil, nil
		for _, s := range c.Servers {
			if c.leads(s) {
				leader = s
			} else {
				others = append(others, s)
			}
		}
		if leader != nil {
			return leader, others
		}
		if time.Now().After(limit) {
			c.t.Fatal("the cluster has no leader")
		}
	}
}

func (c *Cluster) leads(s *Server) bool {
	if s.frozen || s.cmd.ProcessState != nil {
		return false
	}
	client, err := NewClient(s.Addr())
	if err != nil {
		return false
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	st, err := client.Status(ctx, s.Addr())
	return err == nil && st.Leader == st.Header.MemberId
}
