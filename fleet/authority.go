package fleet

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

const (
	// authorityLife is longer than machines live.
	authorityLife = 10 * 365 * 24 * time.Hour
	// machineLife is what a machine that was lost stays a member at most. What
	// has less than renewAt left is renewed where the authority is.
	machineLife = 365 * 24 * time.Hour
	renewAt     = machineLife / 3
	// skew is how much clocks may differ.
	skew = time.Hour
	// maxFile bounds a file in bytes: a certificate for a hundred hosts takes 4 KiB.
	maxFile = 64 << 10
	// maxHosts bounds the names and addresses of a certificate.
	maxHosts = 100
)

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// Certify makes sure that the machine has a certificate that is also for hosts.
// If the machine belongs to no fleet yet it begins one, with an authority.
func (d Dir) Certify(hosts ...string) error {
	a, err := d.authority()
	if errors.Is(err, fs.ErrNotExist) {
		ca, cerr := d.ca()
		if cerr == nil { // it is another machine's
			cert, err := d.machine(ca)
			if err == nil && !covers(cert.Leaf, hosts) {
				err = fmt.Errorf("%s is not for %s: invite this machine again, with --host for each", d.path(machineFile), strings.Join(hosts, " and "))
			}
			return err
		}
		if !errors.Is(cerr, ErrNone) {
			return cerr
		}
		a, err = d.begin()
	}
	if err != nil {
		return err
	}
	if err := d.write(caFile, encode(a.cert, nil), 0o644); err != nil {
		return err
	}
	cert, err := d.machine(a.cert)
	if err == nil {
		if covers(cert.Leaf, hosts) && time.Until(cert.Leaf.NotAfter) > renewAt {
			return nil
		}
		hosts = append(hosts, hostsOf(cert.Leaf)...)
	}
	data, err := a.issue(hosts, time.Now(), machineLife)
	if err != nil {
		return err
	}
	return d.write(machineFile, data, 0o600)
}

// hostsOf are the names and addresses of a machine, but for the fleet's.
func hostsOf(c *x509.Certificate) []string {
	hosts := slices.DeleteFunc(slices.Clone(c.DNSNames), func(n string) bool { return n == memberName })
	for _, ip := range c.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

// Invite makes what another machine Joins with, for which it issues a certificate
// that is also for hosts. It is a secret, and takes the authority's key.
func (d Dir) Invite(hosts ...string) (ca, machine []byte, err error) {
	a, err := d.authority()
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := d.ca(); err != nil {
			return nil, nil, err
		}
		return nil, nil, fmt.Errorf("%s is not here: invite where the fleet began", authorityFile)
	}
	if err != nil {
		return nil, nil, err
	}
	machine, err = a.issue(hosts, time.Now(), machineLife)
	return encode(a.cert, nil), machine, err
}

// Began reports whether this machine's is the fleet's authority.
func (d Dir) Began() bool {
	_, err := os.Stat(d.path(authorityFile))
	return err == nil
}

// Invited is how a machine speaks to members that has not kept what Invite has
// made.
func Invited(ca, machine []byte) (*tls.Config, error) {
	root, cert, err := invited(ca, machine)
	if err != nil {
		return nil, err
	}
	return member(root, func() (*tls.Certificate, error) { return cert, nil }), nil
}

// invited reads what Invite has made, which is valid now.
func invited(ca, machine []byte) (root *x509.Certificate, cert *tls.Certificate, err error) {
	if root, err = parse(ca); err != nil {
		return nil, nil, fmt.Errorf("the fleet's certificate: %w", err)
	}
	if cert, err = check(machine, root, time.Now()); err != nil {
		return nil, nil, fmt.Errorf("the machine's certificate: %w", err)
	}
	return root, cert, nil
}

// Join keeps what Invite has made. A machine joins the same fleet again to renew
// its certificate, and no other one before it Leaves.
func (d Dir) Join(ca, machine []byte) error {
	root, _, err := invited(ca, machine)
	if err != nil {
		return err
	}
	old, err := d.ca()
	if err == nil && !old.Equal(root) {
		return fmt.Errorf("%s is of another fleet", d.path(caFile))
	}
	if err != nil && !errors.Is(err, ErrNone) {
		return err
	}
	if err := d.write(machineFile, machine, 0o600); err != nil {
		return err
	}
	return d.write(caFile, encode(root, nil), 0o644)
}

// Leave removes what Join has kept, if it is there.
func (d Dir) Leave() error {
	for _, name := range []string{machineFile, caFile} {
		if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// begin makes an authority, once: of several that do so, all get the same.
func (d Dir) begin() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "thaw fleet " + rand.Text()[:8]}, NotBefore: now.Add(-skew), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	data, err := sign(template, template, key, key)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, err
	}
	temp := d.path(authorityFile + "." + rand.Text())
	defer os.Remove(temp)
	if err := writeSynced(temp, data, 0o600); err != nil {
		return nil, err
	}
	if err := os.Link(temp, d.path(authorityFile)); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return d.authority()
}

// issue makes a machine's certificate and key, in PEM.
func (a *authority) issue(hosts []string, now time.Time, life time.Duration) ([]byte, error) {
	if len(hosts) > maxHosts {
		return nil, fmt.Errorf("%d names and addresses for one machine, at most %d", len(hosts), maxHosts)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: memberName}, DNSNames: []string{memberName},
		NotBefore: now.Add(-skew), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, h := range hosts {
		switch ip := net.ParseIP(h); {
		case ip != nil && !slices.ContainsFunc(template.IPAddresses, ip.Equal):
			template.IPAddresses = append(template.IPAddresses, ip)
		case ip == nil && !slices.Contains(template.DNSNames, h):
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return sign(template, a.cert, key, a.key)
}

// sign makes a certificate for key, and gives both in PEM.
func sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey, by crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	return encode(cert, secret), err
}

// encode gives PEM of a certificate, and of its key if there is one.
func encode(c *x509.Certificate, key []byte) []byte {
	out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	if key != nil {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	}
	return out
}

// parse reads one certificate of an authority.
func parse(data []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("want one certificate in PEM")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	if !c.IsCA {
		return nil, errors.New("it is no authority's")
	}
	return c, nil
}

// check reads a machine's certificate and key, and whether the authority has
// issued it and it is valid now.
func check(data []byte, ca *x509.Certificate, now time.Time) (*tls.Certificate, error) {
	cert, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, errors.New("want a certificate and its key in PEM") // not what it holds
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	switch _, err = cert.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: memberName, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); {
	case now.After(cert.Leaf.NotAfter):
		err = fmt.Errorf("it has expired on %s: invite this machine again where the fleet began, and join again", cert.Leaf.NotAfter.UTC().Format(time.DateOnly))
	case now.Before(cert.Leaf.NotBefore):
		err = fmt.Errorf("it is valid from %s on, and it is %s here: set this machine's clock", cert.Leaf.NotBefore.UTC().Format(time.DateTime), now.UTC().Format(time.DateTime))
	case err != nil:
		err = fmt.Errorf("it is not of the fleet's authority: %w", err)
	}
	return &cert, err
}

// ca is the authority's certificate; ErrNone if there is none.
func (d Dir) ca() (*x509.Certificate, error) {
	data, err := readFile(d.path(caFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, err
	}
	c, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.path(caFile), err)
	}
	return c, nil
}

// machine is this machine's certificate, which is of the authority and valid.
func (d Dir) machine(ca *x509.Certificate) (*tls.Certificate, error) {
	data, err := readSecret(d.path(machineFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, err
	}
	c, err := check(data, ca, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.path(machineFile), err)
	}
	return c, nil
}

// authority is the fleet's; fs.ErrNotExist if its key is not here.
func (d Dir) authority() (*authority, error) {
	data, err := readSecret(d.path(authorityFile))
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(data, data)
	if err != nil || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("%s: want an authority's certificate and its key in PEM", d.path(authorityFile))
	}
	return &authority{pair.Leaf, pair.PrivateKey.(crypto.Signer)}, nil
}

// readSecret reads a file that only its owner may read.
func readSecret(path string) ([]byte, error) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read by others: chmod 600, or better make the fleet's certificates anew", path)
	}
	return readFile(path)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return data, err
}

// write replaces a file, whole or not at all, if it is to hold anything else.
func (d Dir) write(name string, data []byte, mode fs.FileMode) error {
	if old, err := readFile(d.path(name)); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	temp := d.path(name + "." + rand.Text())
	defer os.Remove(temp)
	if err := writeSynced(temp, data, mode); err != nil {
		return err
	}
	return os.Rename(temp, d.path(name))
}

func writeSynced(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}
