// Package tests3 runs a real S3 server for tests.
package tests3

import (
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"thaw/internal/testbin"
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
	if bin == "" {
		bin = testbin.Path(t, "versitygw")
	}
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("no S3 server to test with (%v): %s, or set THAW_VERSITYGW", err, buildServer)
	}
	s := &Server{dir: t.TempDir(), Access: rand.Text(), Secret: rand.Text()}
	var err error
	for range startTries { // others may take the port before the server does
		if err = s.start(t, bin); err == nil {
			s.login(t)
			return s
		}
	}
	t.Fatalf("the S3 server did not start: %v", err)
	return nil
}

// start starts the process, and waits until it answers.
func (s *Server) start(t testing.TB, bin string) error {
	t.Helper()
	addr := freeAddr(t)
	s.URL = "http://" + addr
	cmd := exec.Command(bin, "--port", addr, "--quiet", "--keep-alive", "posix", s.dir)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY_ID="+s.Access, "ROOT_SECRET_ACCESS_KEY="+s.Secret)
	out := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	end := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	if err := await(addr, ended); err != nil {
		end()
		return fmt.Errorf("%w\n%s", err, out)
	}
	t.Cleanup(end)
	return nil
}

const (
	startTries = 10
	// lowPort and highPort bound ports that the kernel gives nobody who asks for any.
	lowPort, highPort = 15000, 32000
)

// freeAddr gives an address that nobody listens at.
func freeAddr(t testing.TB) string {
	t.Helper()
	for range 100 {
		addr := "127.0.0.1:" + strconv.Itoa(lowPort+mathrand.IntN(highPort-lowPort))
		if l, err := net.Listen("tcp", addr); err == nil {
			_ = l.Close()
			return addr
		}
	}
	t.Fatal("no port is free")
	return ""
}

// await polls until the address answers.
func await(addr string, ended chan error) error {
	deadline, tick := time.NewTimer(3*time.Minute), time.NewTicker(20*time.Millisecond)
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
			close(ended)
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
