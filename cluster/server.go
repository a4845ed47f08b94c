package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/sys/unix"
)

const (
	// minToken is the shortest token in bytes: less can be guessed.
	minToken = 16
	// started is how long a server may take to listen: it first reads what it has.
	started = time.Minute
	// maxStore and maxMemory bound what a server keeps on disk and in memory.
	maxStore  = 32 << 30
	maxMemory = 512 << 20
	// maxConns is more than the roles of a large fleet need.
	maxConns = 4096
	// clusterName begins the name of a cluster of several servers; the number
	// of copies that it keeps follows. So clients learn it.
	clusterName = "thaw-r"
)

// ServerOptions say how a server runs.
type ServerOptions struct {
	Dir    string // all it stores; made 0700 if it is not there
	Listen string // host:port; empty: loopback, any port
	Token  string // lets clients and servers in; at least 16 bytes
	// TLS is how clients and the other servers of a cluster are spoken to, from
	// the first byte on, for both sides of a connection; it asks for certificates.
	// nil: not at all, which is for loopback.
	TLS *tls.Config

	// Name tells servers of a cluster apart. Only they need it.
	Name string
	// ClusterListen is host:port for the other servers of a cluster; empty:
	// this is the only one.
	ClusterListen string
	// Peers are the addresses of other servers, as their ClusterListen says. A
	// few of them are enough.
	Peers []string
	// Replicas is on how many servers of a cluster each record is kept; 0 means
	// 3. It is the same for all servers of a cluster.
	Replicas int

	// Warn is told one line for each warning or error of the server. It may be
	// nil, is called by many at a time and must return soon.
	Warn func(line string)
}

// Server is a running server.
type Server struct {
	nats *server.Server
	lock *os.File
	url  string
	dial func(context.Context) (*Conn, error)
}

// Serve starts a server and returns once it listens; ctx bounds that only. A
// server of a cluster listens before the cluster can answer. Only one server
// uses a folder at a time.
func Serve(ctx context.Context, o ServerOptions) (*Server, error) {
	options, err := o.nats()
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	n, err := start(ctx, options, &journal{warn: o.Warn, secrets: []string{options.Password, options.Cluster.Password, o.Token}})
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	s := &Server{nats: n, lock: lock, url: "nats://" + n.Addr().String()}
	if o.TLS != nil {
		s.url = schemeTLS + n.Addr().String()
	}
	s.dial = func(ctx context.Context) (*Conn, error) { return DialTLS(ctx, s.url, o.Token, o.TLS) }
	return s, nil
}

// URL is where clients find the server.
func (s *Server) URL() string { return s.url }

// Close ends the server and returns when it has ended.
func (s *Server) Close() error {
	s.nats.Shutdown()
	s.nats.WaitForShutdown()
	return s.lock.Close()
}

// start runs a server until it listens, or says why it does not.
func start(ctx context.Context, o *server.Options, j *journal) (*server.Server, error) {
	n, err := server.NewServer(o)
	if err != nil {
		return nil, fmt.Errorf("cluster: server: %s", j.clean(err.Error()))
	}
	n.SetLoggerV2(j, false, false, false)
	n.Start() // what it starts, it ends at Shutdown
	end := time.Now().Add(started)
	for !n.ReadyForConnections(pause) {
		if fatal := j.fatal(); fatal != "" || ctx.Err() != nil || time.Now().After(end) {
			n.Shutdown()
			n.WaitForShutdown()
			switch {
			case fatal != "":
				return nil, fmt.Errorf("cluster: server: %s", fatal)
			case ctx.Err() != nil:
				return nil, fmt.Errorf("cluster: server: %w", context.Cause(ctx))
			}
			return nil, fmt.Errorf("cluster: server: does not listen on %s after %v; is another program there?", net.JoinHostPort(o.Host, strconv.Itoa(o.Port)), started)
		}
	}
	return n, nil
}

// nats checks the options and puts them in the server's words.
func (o ServerOptions) nats() (*server.Options, error) {
	if len(o.Token) < minToken {
		return nil, fmt.Errorf("cluster: the token has fewer than %d bytes", minToken)
	}
	if o.Dir == "" {
		return nil, errors.New("cluster: a server needs a folder")
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	host, port, err := address(o.Listen)
	if err != nil {
		return nil, err
	}
	n := &server.Options{
		Host: host, Port: port, ServerName: o.Name, NoSigs: true, NoLog: true,
		Username: user, Password: secret(o.Token, "client"),
		AuthTimeout: 10, // s: a machine full of cold starts is slow
		MaxConn:     maxConns, MaxPayload: MaxValue + overhead,
		JetStream: true, StoreDir: o.Dir, SyncAlways: true,
		JetStreamMaxStore: maxStore, JetStreamMaxMemory: maxMemory,
		DisableJetStreamBanner: true,
	}
	if o.TLS != nil {
		n.TLSConfig, n.TLSHandshakeFirst, n.TLSTimeout = o.TLS.Clone(), true, n.AuthTimeout
	}
	return n, o.cluster(n)
}

// cluster makes the server one of several, if it is to be.
func (o ServerOptions) cluster(n *server.Options) error {
	if o.ClusterListen == "" {
		if len(o.Peers) > 0 || o.Replicas > 1 {
			return errors.New("cluster: peers and replicas need an address to listen on for other servers")
		}
		return nil
	}
	if o.Name == "" {
		return errors.New("cluster: a server of a cluster needs a name")
	}
	if o.Replicas == 0 {
		o.Replicas = 3 // the least that survives the loss of one
	}
	if o.Replicas != 1 && o.Replicas != 3 && o.Replicas != 5 {
		return fmt.Errorf("cluster: %d replicas: choose 1, 3 or 5, so that a majority is clear", o.Replicas)
	}
	host, port, err := address(o.ClusterListen)
	if err != nil {
		return err
	}
	n.Cluster = server.ClusterOpts{
		Name: clusterName + strconv.Itoa(o.Replicas), Host: host, Port: port, AuthTimeout: 10,
		Username: user, Password: secret(o.Token, "server"),
	}
	if o.TLS != nil {
		n.Cluster.TLSConfig, n.Cluster.TLSTimeout = o.TLS.Clone(), n.AuthTimeout
	}
	for _, p := range o.Peers {
		if _, _, err := address(p); err != nil {
			return err
		}
		n.Routes = append(n.Routes, &url.URL{Scheme: "nats", Host: p, User: url.UserPassword(n.Cluster.Username, n.Cluster.Password)})
	}
	return nil
}

// address cuts host:port; port 0 is any, which the server calls -1.
func address(s string) (string, int, error) {
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, fmt.Errorf("cluster: address %q: want host:port", s)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	switch {
	case err != nil || host == "":
		return "", 0, fmt.Errorf("cluster: address %q: want host:port", s)
	case port == 0:
		return host, server.RANDOM_PORT, nil
	}
	return host, int(port), nil
}

// lockDir makes a server's folder and keeps other servers out of it.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil { // it may have been there
		return nil, fmt.Errorf("cluster: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("cluster: %s is in use by another server: %w", dir, os.NewSyscallError("flock", err)), f.Close())
	}
	return f, nil
}
