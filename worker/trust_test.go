package worker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/invokewire"
	"thaw/network"
)

// authority is a CA of a test's.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a test's CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var der []byte
	der, a.key = a.sign(t, template, nil)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, a.pem = cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

// sign makes a certificate and its key; without an issuer it signs itself.
func (a *authority) sign(t *testing.T, template, issuer *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer := a.key
	if issuer == nil {
		issuer, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

// server serves HTTPS with a certificate of the CA for a name.
func (a *authority) server(t *testing.T, name string) *httptest.Server {
	t.Helper()
	der, key := a.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour),
	}, a.cert)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "trusted") }))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// A function trusts the servers of the operator's CA, in a namespace of its own.
func TestCABundle(t *testing.T) {
	needRoot(t)
	ca := newAuthority(t)
	_, port, _ := net.SplitHostPort(ca.server(t, GatewayName).Listener.Addr().String())
	dir := t.TempDir()
	n, err := network.Open(network.Options{State: filepath.Join(dir, "net"), Run: filepath.Join(dir, "run"), Doors: map[uint16]string{443: "127.0.0.1:" + port}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
	r := newRig(t, func(o *Options) { o.Network, o.CABundle = n, ca.pem })
	url := "https://" + GatewayName + "/"
	ask := `{"get":["` + url + `"],"files":["/` + usualBundle + `","/` + ownBundle + `"],"env":["SSL_CERT_FILE","NODE_EXTRA_CA_CERTS"]}`
	r.start("i", "", spec(func(s *invokewire.Spec) { s.Egress = true }))
	v, got := r.reaches("i", ask, url)
	if v.Get[url] != "200 trusted" || v.Files["/"+usualBundle] != string(ca.pem) || v.Files["/"+ownBundle] != string(ca.pem) {
		t.Errorf("%+v, %+v", v, got)
	}
	if want := map[string]string{"SSL_CERT_FILE": "/" + usualBundle, "NODE_EXTRA_CA_CERTS": "/" + ownBundle}; !maps.Equal(v.Env, want) {
		t.Errorf("%v, want %v", v.Env, want)
	}
	r.start("own", "", spec(func(s *invokewire.Spec) {
		s.Egress, s.Env["SSL_CERT_FILE"], s.Env["SSL_CERT_DIR"] = true, "/nothing", "/nothing"
	}))
	if v, _ := r.reaches("own", ask, url); !strings.Contains(v.Get[url], "certificate signed by unknown authority") || v.Env["SSL_CERT_FILE"] != "/nothing" {
		t.Errorf("with a variable of the function's own: %+v", v)
	}
	if err := r.stop(); err != nil { // before the network
		t.Error(err)
	}
}

// What is no bundle is refused when the worker is made, keys above all.
func TestBadBundles(t *testing.T) {
	ca := newAuthority(t)
	der, err := x509.MarshalECPrivateKey(ca.key)
	if err != nil {
		t.Fatal(err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	for name, text := range map[string][]byte{
		"nothing PEM": []byte("hello"), "a key": slices.Concat(ca.pem, key), "no certificate": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}),
		"cut": ca.pem[:len(ca.pem)/2], "cut after one": slices.Concat(ca.pem, ca.pem[:len(ca.pem)/2]), "too long": slices.Concat(ca.pem, make([]byte, maxBundle)),
	} {
		if err := checkBundle(text); err == nil || strings.Contains(err.Error(), string(key[30:60])) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := checkBundle(slices.Concat([]byte("# ours\n"), ca.pem, []byte("\n"), ca.pem)); err != nil {
		t.Error(err)
	}
}

// Images have their certificates in many places, behind links, or nowhere.
func TestTrust(t *testing.T) {
	for name, c := range map[string]struct {
		files, links map[string]string
		want         string            // of SSL_CERT_FILE
		shown        map[string]string // without the bundle's own and what was there
	}{
		"nothing": {want: usualBundle, shown: map[string]string{usualBundle: "CA"}},
		"debian":  {files: map[string]string{usualBundle: "D"}, want: usualBundle, shown: map[string]string{usualBundle: "D\nCA"}},
		"alpine": {
			files: map[string]string{usualBundle: "A\n"}, links: map[string]string{"etc/ssl/cert.pem": "certs/ca-certificates.crt"},
			want: usualBundle, shown: map[string]string{usualBundle: "A\nCA"},
		},
		"amazon": {
			files: map[string]string{"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem": "AL"},
			links: map[string]string{"etc/pki/tls/certs/ca-bundle.crt": "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "etc/ssl/certs": "../pki/tls/certs"},
			want:  "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", shown: map[string]string{"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem": "AL\nCA"},
		},
		"a link to no file": {
			files: map[string]string{"usr/share/pki/x": ""}, links: map[string]string{"etc/ssl": "/usr/share/pki"},
			want: "usr/share/pki/certs/ca-certificates.crt", shown: map[string]string{"usr/share/pki/certs/ca-certificates.crt": "CA"},
		},
		"links to elsewhere": {
			files: map[string]string{"bin/sh": "shell", "etc/passwd": "root"},
			links: map[string]string{
				usualBundle: "../../../../../etc/passwd", "etc/ssl/cert.pem": "/bin/sh", "etc/ssl/ca-bundle.pem": "/etc/hosts", "etc/pki/tls/certs": "/proc/self",
			},
			want: "etc/passwd", shown: map[string]string{"etc/passwd": "root\nCA"},
		},
		"a loop": {links: map[string]string{"etc/ssl": "ssl"}, want: usualBundle, shown: map[string]string{usualBundle: "CA"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for file, text := range c.files {
				place(t, filepath.Join(root, file), func(at string) error { return os.WriteFile(at, []byte(text), 0o644) })
			}
			for link, to := range c.links {
				place(t, filepath.Join(root, link), func(at string) error { return os.Symlink(to, at) })
			}
			entries := map[string]string{"etc/": "", "etc/hosts": "hosts", ".thaw/": ""}
			env, err := trust(root, []byte("CA"), entries)
			if err != nil || env[0] != "SSL_CERT_FILE=/"+c.want {
				t.Fatalf("%q, %v", env, err)
			}
			shown := map[string]string{}
			for at, text := range entries {
				if at != "etc/hosts" && at != ownBundle && !strings.HasSuffix(at, "/") {
					shown[at] = text
				}
			}
			if !maps.Equal(shown, c.shown) {
				t.Errorf("%q, want %q", shown, c.shown)
			}
			for at := range shown {
				if _, ok := entries[filepath.Dir(at)+"/"]; !ok {
					t.Errorf("%s has no folder: %q", at, entries)
				}
			}
		})
	}
}

// place makes a file and its folders.
func place(t *testing.T, at string, file func(string) error) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := file(at); err != nil {
		t.Fatal(err)
	}
}

// What is no regular file, or far too long, is no file of certificates.
func TestTrustOddFiles(t *testing.T) {
	root := t.TempDir()
	long := filepath.Join(root, "etc/ssl/cert.pem")
	place(t, long, func(at string) error { return os.WriteFile(at, make([]byte, maxBundle+1), 0o644) })
	place(t, filepath.Join(root, "etc/ssl/ca-bundle.pem"), func(at string) error { return unix.Mkfifo(at, 0o644) })
	entries := map[string]string{}
	if env, err := trust(root, []byte("CA"), entries); err != nil || env[0] != "SSL_CERT_FILE=/"+usualBundle || entries["etc/ssl/cert.pem"] != "" || entries["etc/ssl/ca-bundle.pem"] != "" {
		t.Errorf("%q, %v", env, err)
	}
}
