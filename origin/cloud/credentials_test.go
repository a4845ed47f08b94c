package cloud

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"thaw/chunk"
	"thaw/chunk/chunktest"
	"thaw/internal/tests3"
	"thaw/origin"
)

// vending hands out credentials of a server as a container's host does, each
// time with the token of the day.
type vending struct {
	URL string

	mu    sync.Mutex // guards what follows
	token string     // handed out
	good  string     // taken by the server
	asked int        // for credentials
	sent  int        // requests to the server
}

// newVending starts the two servers: that of the credentials, at which the
// environment points, and one before the bucket's, which refuses tokens that
// are over with a status and a code.
func newVending(t *testing.T, s *tests3.Server, status int, code string) *vending {
	t.Helper()
	v := &vending{token: "token-1", good: "token-1"}
	credentials := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.asked++
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{
			"AccessKeyId": s.Access, "SecretAccessKey": s.Secret, "Token": v.token, "Expiration": time.Now().Add(time.Hour).UTC(),
		})
	}))
	t.Cleanup(credentials.Close)
	next := s.Handler(t)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v.mu.Lock()
		v.sent++
		good := v.good
		v.mu.Unlock()
		if r.Header.Get("X-Amz-Security-Token") == good {
			if err := signAnew(r, s); err != nil {
				t.Error(err)
			}
			next.ServeHTTP(w, r)
			return
		}
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, "<Error><Code>%s</Code><Message>The provided token %s\nhas expired.</Message></Error>", code, good)
	}))
	t.Cleanup(front.Close)
	v.URL = front.URL
	tests3.NoLogin(t)
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", credentials.URL)
	return v
}

// signAnew signs a request for the server behind, which knows no tokens.
func signAnew(r *http.Request, s *tests3.Server) error {
	r.Header.Del("X-Amz-Security-Token")
	r.Header.Del("Authorization")
	r.URL.Scheme, r.URL.Host = "http", r.Host
	login := aws.Credentials{AccessKeyID: s.Access, SecretAccessKey: s.Secret}
	return v4.NewSigner().SignHTTP(r.Context(), login, r, r.Header.Get("X-Amz-Content-Sha256"), "s3", "us-east-1", time.Now())
}

// expire has the server take another token, and perhaps hands it out.
func (v *vending) expire(good, handedOut string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.good, v.token = good, handedOut
	v.asked, v.sent = 0, 0
}

func (v *vending) numbers() (asked, sent int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.asked, v.sent
}

// TestCredentialsAreRenewed once, in every kind of request and for all that
// services say, before the time that was announced.
func TestCredentialsAreRenewed(t *testing.T) {
	server := tests3.Start(t)
	for code, status := range map[string]int{
		"ExpiredToken": 400, "ExpiredTokenException": 403, "InvalidToken": 400, "RequestExpired": 403, "InvalidAccessKeyId": 403,
	} {
		t.Run(code, func(t *testing.T) {
			v := newVending(t, server, status, code)
			chunks := open(t, server.Bucket(t, v.URL)).Chunks("r1")
			sample, more := chunktest.Sample(1, chunk.MinSize), chunktest.Sample(2, chunk.MinSize)
			if _, err := chunks.Put(t.Context(), sample.Name, sample.Data); err != nil {
				t.Fatal(err)
			}
			for i, c := range []struct {
				name string
				f    func() error
			}{
				{"get", func() error {
					got, err := chunks.Get(t.Context(), sample.Name)
					if err == nil && !bytes.Equal(got, sample.Data) {
						err = errors.New("other bytes")
					}
					return err
				}},
				{"stat", func() error { _, err := chunks.Stat(t.Context(), sample.Name); return err }},
				{"replace", func() error { return chunks.Repair(t.Context(), more.Name, more.Data) }},
				{"list", func() error {
					for _, err := range chunks.List(t.Context()) {
						return err
					}
					return errors.New("nothing")
				}},
			} {
				v.expire(fmt.Sprint("token-", i+2), fmt.Sprint("token-", i+2))
				if err := c.f(); err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
				if asked, sent := v.numbers(); asked != 1 || sent != 2 {
					t.Errorf("%s: %d requests, %d for credentials", c.name, sent, asked)
				}
			}
			if got, err := chunks.Get(t.Context(), more.Name); err != nil || !bytes.Equal(got, more.Data) {
				t.Errorf("what was put: %v", err)
			}
		})
	}
}

// TestCredentialsStayOver: one clear error, and no storm on those who hand them
// out. Once there are others, all goes on.
func TestCredentialsStayOver(t *testing.T) {
	server := tests3.Start(t)
	v := newVending(t, server, 400, "ExpiredToken")
	chunks := open(t, server.Bucket(t, v.URL)).Chunks("r1")
	sample := chunktest.Sample(1, chunk.MinSize)
	if _, err := chunks.Put(t.Context(), sample.Name, sample.Data); err != nil {
		t.Fatal(err)
	}
	v.expire("token-2", "token-1")
	const gets = 60
	begin := time.Now()
	var wg sync.WaitGroup
	for range gets {
		wg.Go(func() {
			_, err := chunks.Get(t.Context(), sample.Name)
			checkFailure(t, "get", err, origin.ErrRefused, []string{"ExpiredToken"})
			checkLine(t, server, err)
		})
	}
	wg.Wait()
	asked, sent := v.numbers()
	if most := 1 + int(time.Since(begin)/renewEvery); asked < 1 || asked > most || sent != gets {
		t.Errorf("%d requests, %d for credentials, want at most %d", sent, asked, most)
	}
	v.expire("token-2", "token-2")
	deadline := time.After(3 * time.Minute)
	for {
		got, err := chunks.Get(t.Context(), sample.Name)
		if err == nil && bytes.Equal(got, sample.Data) {
			return
		}
		select {
		case <-deadline:
			t.Fatal(err)
		default: // they are not asked for more than once a second
		}
	}
}

// TestCredentialsInAFile that somebody keeps up to date.
func TestCredentialsInAFile(t *testing.T) {
	server := tests3.Start(t)
	v := newVending(t, server, 403, "InvalidToken")
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")
	file := filepath.Join(t.TempDir(), "credentials")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	write := func(token string) {
		text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\naws_session_token = %s\n", server.Access, server.Secret, token)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("token-1")
	chunks := open(t, server.Bucket(t, v.URL)).Chunks("r1")
	sample := chunktest.Sample(1, chunk.MinSize)
	if _, err := chunks.Put(t.Context(), sample.Name, sample.Data); err != nil {
		t.Fatal(err)
	}
	write("token-2")
	v.expire("token-2", "")
	if _, err := chunks.Get(t.Context(), sample.Name); err != nil {
		t.Error(err)
	}
}
