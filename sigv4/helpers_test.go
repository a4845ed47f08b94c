package sigv4

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	keyID   = "AKIATHAWTESTEXAMPLE"
	secret  = "an/example+of/a+secret"
	account = "000000000000"
	region  = "us-east-1"
)

// start is when the requests of these tests are signed.
func start() time.Time { return time.Date(2026, 11, 21, 19, 48, 31, 0, time.UTC) }

// options know one key; change them as needed.
func options() Options {
	return Options{Region: region, Service: "lambda", Now: start, Secret: known(Key{Secret: secret, Account: account})}
}

func known(k Key) func(context.Context, string) (Key, error) {
	return func(_ context.Context, id string) (Key, error) {
		if id != keyID {
			return Key{}, fmt.Errorf("key %s: %w", id, ErrUnknownKey)
		}
		return k, nil
	}
}

func hashOf(body string) string {
	sum := sha256.Sum256([]byte(body))
	return hex.EncodeToString(sum[:])
}

// signed returns a request as a server gets it, signed by AWS's SDK.
func signed(t testing.TB, method, target, body, token string) *http.Request {
	t.Helper()
	out, err := http.NewRequest(method, "http://localhost:9000"+target, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	out.Header.Set("X-Amz-Invocation-Type", "Event")
	out.Header.Set("X-Padded", "  a   b ")
	credentials := aws.Credentials{AccessKeyID: keyID, SecretAccessKey: secret, SessionToken: token}
	if err := v4.NewSigner().SignHTTP(t.Context(), credentials, out, hashOf(body), "lambda", region, start()); err != nil {
		t.Fatal(err)
	}
	return received(t, out)
}

// received sends a request through a real server.
func received(t testing.TB, out *http.Request) *http.Request {
	t.Helper()
	var in *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { in = r.Clone(context.WithoutCancel(r.Context())) }))
	defer server.Close()
	sent := out.Clone(t.Context())
	sent.Host = out.URL.Host // what was signed
	sent.URL.Host = server.Listener.Addr().String()
	answer, err := server.Client().Transport.RoundTrip(sent)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	return in
}

// refused wants an error of the given name.
func refused(t *testing.T, what string, err error, code string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Code() != code {
		t.Errorf("%s: got %v, want %s", what, err, code)
	}
}

// A gate is a server that verifies each request and notes who sent it, and why not.
type gate struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string
	errs []error
}

func newGate(t *testing.T, o Options) *gate {
	g := &gate{}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		id, err := Verify(r, hashOf(string(body)), o)
		if err == nil && id != (Identity{KeyID: keyID, Account: account}) {
			err = fmt.Errorf("identity is %v", id)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.seen = append(g.seen, r.Method+" "+r.RequestURI)
		if err != nil {
			g.errs = append(g.errs, fmt.Errorf("%s %s: %w", r.Method, r.RequestURI, err))
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, "{}")
	}))
	t.Cleanup(g.Close)
	return g
}

// passed wants count requests, all verified.
func (g *gate) passed(t *testing.T, count int) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, err := range g.errs {
		t.Error(err)
	}
	if len(g.seen) != count {
		t.Errorf("%d requests came, want %d: %q", len(g.seen), count, g.seen)
	}
}
