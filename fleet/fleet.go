// Package fleet says which machines belong together, and has their roles speak
// to each other.
//
// On loopback roles speak plainly: who gets there is on the machine, and has to
// know the fleet's token besides. Everywhere else they speak TLS 1.3 and both
// sides show a certificate of the fleet's own authority. There is nothing in
// between: without certificates nothing listens, and nothing is dialled, beyond
// loopback.
//
// # What a machine has of its fleet
//
// A folder, its owner's alone, with PEM files:
//
//	authority.pem  the authority's certificate and key: only where the fleet began
//	ca.pem         the authority's certificate
//	machine.pem    this machine's certificate and key
//
// All keys are ECDSA's on P-256. A machine's certificate is for the name
// fleet.thaw.internal, which every member has and none is reached by, so that it
// holds at any address; and for names and addresses by which strangers reach
// the machine, if it is to have a public door. It lasts a year. The file is read
// again for each handshake: a new one counts at once. There is no list of what
// was revoked: to expel a machine, make the authority and the token anew.
package fleet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"thaw/quiet"
)

// ErrNone says that the machine has no certificate of a fleet.
var ErrNone = errors.New("this machine belongs to no fleet: begin one with thaw up --fleet HOST:PORT, or join one with thaw fleet join")

const (
	authorityFile, caFile, machineFile = "authority.pem", "ca.pem", "machine.pem"
	// memberName is what members are checked to be.
	memberName = "fleet.thaw.internal"
	// dialTime bounds how long a connection and its handshake take.
	dialTime = 5 * time.Second
)

// Dir is a machine's folder. It may be used by many at a time.
type Dir string

func (d Dir) path(name string) string { return filepath.Join(string(d), name) }

// Loopback tells whether a HOST:PORT can only be reached from this machine.
func Loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// TLS is how members speak to each other, as client and as server. It fails
// with ErrNone where there are no certificates.
func (d Dir) TLS() (*tls.Config, error) {
	ca, err := d.ca()
	if err != nil {
		return nil, err
	}
	if _, err := d.machine(ca); err != nil {
		return nil, err
	}
	return member(ca, func() (*tls.Certificate, error) { return d.machine(ca) }), nil
}

// member is how one with such a certificate speaks to others.
func member(ca *x509.Certificate, machine func() (*tls.Certificate, error)) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: memberName, NextProtos: []string{"http/1.1"},
		RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return machine() },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return machine() },
	}
}

// Public is how a door of this machine speaks to strangers, who show nothing
// and reach it as host.
func (d Dir) Public(host string) (*tls.Config, error) {
	ca, err := d.ca()
	if err != nil {
		return nil, err
	}
	cert, err := d.machine(ca)
	if err != nil {
		return nil, err
	}
	if cert.Leaf.VerifyHostname(host) != nil {
		return nil, fmt.Errorf("%s is not for %s: invite this machine again with --host %s", d.path(machineFile), host, host)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return d.machine(ca) },
	}, nil
}

// Expires is when the machine's certificate does.
func (d Dir) Expires() (time.Time, error) {
	ca, err := d.ca()
	if err != nil {
		return time.Time{}, err
	}
	cert, err := d.machine(ca)
	if err != nil {
		return time.Time{}, err
	}
	return cert.Leaf.NotAfter, nil
}

// Secure says how a role is spoken to that listens at an address: as TLS does, or
// plainly on loopback, where it gives nil. It refuses what cannot be told to
// other machines.
func (d Dir) Secure(address string) (*tls.Config, error) {
	if Loopback(address) {
		return nil, nil
	}
	if host, _, err := net.SplitHostPort(address); err != nil || host == "" || net.ParseIP(host).IsUnspecified() {
		return nil, fmt.Errorf("%q is no address that other machines can be told: want one of this machine, HOST:PORT", address)
	}
	config, err := d.TLS()
	if err != nil {
		return nil, fmt.Errorf("listening on %s, which is not loopback, takes TLS: %w", address, err)
	}
	return config, nil
}

// Listen listens for roles, as Secure says.
func (d Dir) Listen(ctx context.Context, address string) (net.Listener, error) {
	config, err := d.Secure(address)
	if err != nil {
		return nil, err
	}
	return Listen(ctx, address, config)
}

// Listen listens over TLS, or plainly if config is nil.
func Listen(ctx context.Context, address string, config *tls.Config) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // near by, one path is enough, and the plain one has less to do
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	l = quiet.Listener(l)
	if config != nil {
		l = tls.NewListener(l, config)
	}
	return l, nil
}

// Dialer gives what connects to roles, as Listen has them. An error before the
// connection stands, handshake included, is a *net.OpError of "dial": nothing was
// sent.
func (d Dir) Dialer() func(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := quiet.Dialer{Dialer: net.Dialer{
		Timeout: dialTime,
		// Within some ten seconds a machine that is gone is noticed.
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 4 * time.Second, Interval: 2 * time.Second, Count: 3},
	}}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if Loopback(address) {
			return dialer.DialContext(ctx, network, address)
		}
		config, err := d.TLS()
		if err != nil {
			return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("%s: %w", address, err)}
		}
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return secure(ctx, conn, config)
	}
}

// secure makes a connection one over TLS, or closes it.
func secure(ctx context.Context, conn net.Conn, config *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c := tls.Client(conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: conn.RemoteAddr(), Err: err}
	}
	return c, nil
}

// Client gives a client of roles' HTTP, over Dialer. It keeps a connection for
// each request that is under way, and reads as long headers and trailers as
// roles may send.
func (d Dir) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: d.Dialer(), MaxIdleConnsPerHost: 256, IdleConnTimeout: time.Minute,
		DisableCompression: true, WriteBufferSize: 16 << 10, ReadBufferSize: 16 << 10,
	}}
}

// Door gives what connects to a public door: one on loopback plainly, others as
// a stranger does, who trusts the fleet's authority too, if there is one.
func (d Dir) Door() func(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTime}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if Loopback(address) {
			return dialer.DialContext(ctx, network, address)
		}
		roots, err := d.Roots()
		if err != nil {
			return nil, err
		}
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return secure(ctx, conn, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: host})
	}
}

// Roots are the machine's usual authorities and, if it belongs to a fleet, the
// fleet's.
func (d Dir) Roots() (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // it has none
	}
	ca, err := d.ca()
	if errors.Is(err, ErrNone) {
		return pool, nil
	}
	if err == nil {
		pool.AddCert(ca)
	}
	return pool, err
}

// covers tells whether a certificate is for all of the hosts.
func covers(c *x509.Certificate, hosts []string) bool {
	return !slices.ContainsFunc(hosts, func(h string) bool { return c.VerifyHostname(h) != nil })
}
