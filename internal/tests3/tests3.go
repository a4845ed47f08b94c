// Package tests3 runs a real S3 server for tests.
package tests3

import (
	"crypto/rand"
	"errors"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const buildServer = "build it: cd tools && go build -o ../bin/ github.com/versity/versitygw/cmd/versitygw"

// Server is a real S3 server over a folder.
type Server struct {
	URL            string // http://host:port
	Access, Secret string // its credentials
	dir            string
}

// Start starts a server for the time of the test, with credentials of its
// own in the environment. A machine without the server fails the test.
func Start(t testing.TB) *Server {
	t.Helper()
	bin := os.Getenv("THAW_VERSITYGW")
	for up := ".."; bin == ""; up = filepath.Join(up, "..") { // tests run in their package's folder
		if _, err := os.Stat(filepath.Join(up, "go.mod")); err == nil || up == "../../../.." {
			bin = filepath.Join(up, "bin", "versitygw")
		}
	}
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("no S3 server to test with (%v): %s, or set THAW_VERSITYGW", err, buildServer)
	}
	s := &Server{dir: t.TempDir(), Access: rand.Text(), Secret: rand.Text()}
	addr := freeAddr(t)
	s.URL = "http://" + addr
	cmd := exec.Command(bin, "--port", addr, "--quiet", "--keep-alive", "posix", s.dir)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY_ID="+s.Access, "ROOT_SECRET_ACCESS_KEY="+s.Secret)
	out := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	if err := await(addr, ended); err != nil {
		t.Fatalf("the S3 server did not start: %v\n%s", err, out)
	}
	s.login(t)
	return s
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// await polls until the address answers.
func await(addr string, ended <-chan error) error {
	deadline, tick := time.NewTimer(time.Minute), time.NewTicker(20*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return err
		case err := <-ended:
			return errors.Join(errors.New("it ended"), err)
		}
	}
}

// NoLogin clears what an AWS SDK would find of the machine's.
func NoLogin(t testing.TB) {
	t.Helper()
	for _, name := range []string{
		"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION",
		"AWS_ENDPOINT_URL", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

func (s *Server) login(t testing.TB) {
	t.Helper()
	NoLogin(t)
	t.Setenv("AWS_ACCESS_KEY_ID", s.Access)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s.Secret)
}

// Objects gives the folder that holds all buckets' objects, as files.
func (s *Server) Objects() string { return s.dir }

// Bucket makes a bucket and gives its URL, as reached at an endpoint: a proxy's,
// or the server's own for "".
func (s *Server) Bucket(t testing.TB, endpoint string) string {
	t.Helper()
	if endpoint == "" {
		endpoint = s.URL
	}
	name := strings.ToLower(rand.Text())
	if err := os.Mkdir(filepath.Join(s.dir, name), 0o755); err != nil {
		t.Fatal(err)
	}
	return "s3://" + name + "?endpoint=" + url.QueryEscape(endpoint)
}
