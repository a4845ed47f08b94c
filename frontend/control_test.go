package frontend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/smithy-go"

	"thaw/cluster"
	"thaw/functions"
	"thaw/keys"
	"thaw/lambdaapi"
)

const (
	testAccount = "000000000000"
	testRegion  = "us-east-1"
	testRole    = "arn:aws:iam::000000000000:role/r"
	testImage   = "registry.example/f:latest"
	testDigest  = "5d41402abc4b2a76b9719d911017c5925d41402abc4b2a76b9719d911017c592"
)

// region is the control half of a region over a real cluster, without
// signatures: a header says who asks.
type region struct {
	records *cluster.Records // of store
	t       *testing.T
	store   *functions.Store
	url     string

	mu   sync.Mutex        // guards all below
	zips map[string][]byte // by key
}

// Put keeps a zip package.
func (r *region) Put(_ context.Context, id functions.ID, sha256 string, data *io.SectionReader) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := id.Account + "/" + sha256
	var err error
	r.zips[key], err = io.ReadAll(data)
	return key, err
}

const accountHeader = "Test-Account"

func newRegion(t *testing.T) *region {
	t.Helper()
	s, err := cluster.Serve(t.Context(), cluster.ServerOptions{Dir: t.TempDir(), Listen: "127.0.0.1:0", Token: "a token of the tests"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	conn, err := cluster.Dial(t.Context(), s.URL(), "a token of the tests")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	records, err := conn.Records(t.Context(), "functions")
	if err != nil {
		t.Fatal(err)
	}
	r := &region{t: t, store: functions.NewStore(records), records: records, zips: map[string][]byte{}}
	c := newControl(control{
		store: r.store, secrets: newSecrets(testKeeper(t)), region: testRegion, packages: r, runtimes: []string{"provided.al2023", "python3.13", "ours-2.x"}, now: time.Now,
		urls: func(id string) string { return "http://" + id + ".lambda-url." + testRegion + ".localhost:9000/" },
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { serveTest(c, w, q) }))
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

// testKeeper gives each account a key of its own.
func testKeeper(t testing.TB) func(context.Context, string) (keys.Keeper, error) {
	dir := t.TempDir()
	return func(ctx context.Context, account string) (keys.Keeper, error) {
		return keys.Open(ctx, "file://"+dir+"/"+account)
	}
}

func serveTest(c *control, w http.ResponseWriter, q *http.Request) {
	const id = "8f507cfc-xmpl-4697-b07a-ac58fc914c95"
	op, vars, err := lambdaapi.Route(q)
	if err != nil {
		lambdaapi.WriteError(w, id, err)
		return
	}
	body, err := io.ReadAll(q.Body)
	if err != nil {
		lambdaapi.WriteError(w, id, err)
		return
	}
	account := q.Header.Get(accountHeader)
	if account == "" {
		account = testAccount
	}
	if !c.serve(w, q, call{op: op, vars: vars, body: body, account: account, requestID: id}) {
		lambdaapi.WriteError(w, id, errors.New("not an operation of control"))
	}
}

// as sends every request in the name of an account.
type as string

// RoundTrip adds the account.
func (a as) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set(accountHeader, string(a))
	return http.DefaultTransport.RoundTrip(r)
}

func (r *region) client(account string) *lambda.Client {
	return lambda.New(lambda.Options{
		Region: testRegion, BaseEndpoint: aws.String(r.url), HTTPClient: &http.Client{Transport: as(account)}, RetryMaxAttempts: 1,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "id", SecretAccessKey: "secret"}, nil
		}),
	})
}

// build settles what is to be built of a function, as a builder would.
func (r *region) build(name string, result functions.Result) {
	r.t.Helper()
	id := functions.ID{Account: testAccount, Name: name}
	f, err := r.store.Get(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.store.Settle(r.t.Context(), id, f.Latest.Build, result); err != nil {
		r.t.Fatal(err)
	}
}

var ready = functions.Result{
	ResolvedURI: "registry.example/f@sha256:" + testDigest, CodeSha256: testDigest, CodeSize: 7, Image: "i1", Root: "r1"}

// raw sends a request as it is, and gives the answer.
func (r *region) raw(method, path, body string) (status int, header http.Header, answer string) {
	r.t.Helper()
	q, err := http.NewRequestWithContext(r.t.Context(), method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	q.Header.Set(accountHeader, testAccount)
	a, err := http.DefaultClient.Do(q)
	if err != nil {
		r.t.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return a.StatusCode, a.Header, string(b)
}

// wantError checks an error's kind and a part of its message, as a client reads them.
func wantError(t *testing.T, err error, kind, message string) {
	t.Helper()
	var e smithy.APIError
	if !errors.As(err, &e) || e.ErrorCode() != kind || !strings.Contains(e.ErrorMessage(), message) {
		t.Errorf("error %v\nwant %s: %s", err, kind, message)
	}
}

// must takes what succeeded.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// sameJSON compares JSON; a value "*" stands for any.
func sameJSON(t *testing.T, got, want string) {
	t.Helper()
	var g, w any
	if err := json.Unmarshal([]byte(got), &g); err != nil {
		t.Fatalf("%v: %s", err, got)
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatalf("%v: %s", err, want)
	}
	if at := differs(g, w); at != "" {
		t.Errorf("differs at %s\n got: %s\nwant: %s", at, got, want)
	}
}

func differs(got, want any) string {
	g, ok1 := got.(map[string]any)
	w, ok2 := want.(map[string]any)
	switch {
	case want == "*" && got != nil:
		return ""
	case ok1 && ok2:
		for k := range w {
			if at := differs(g[k], w[k]); at != "" {
				return k + "." + at
			}
		}
		for k := range g {
			if _, ok := w[k]; !ok {
				return k
			}
		}
		return ""
	case fmt.Sprint(got) == fmt.Sprint(want):
		return ""
	}
	return fmt.Sprintf("(%v, want %v)", got, want)
}
