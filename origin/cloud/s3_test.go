package cloud

import (
	"context"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"thaw/chunk"
	"thaw/chunk/chunktest"
	"thaw/internal/faults"
	"thaw/internal/tests3"
	"thaw/origin"
	"thaw/origin/origintest"
)

// openURL opens an origin with this package's driver.
func openURL(t *testing.T, url string) (*origin.Origin, error) {
	t.Helper()
	var opts []origin.Option
	for _, scheme := range []string{"s3", "gs", "azblob"} {
		opts = append(opts, origin.WithDriver(scheme, Open))
	}
	return origin.Open(t.Context(), url, opts...)
}

func open(t *testing.T, url string) *origin.Origin {
	t.Helper()
	o, err := openURL(t, url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

func TestS3(t *testing.T) {
	server := tests3.Start(t)
	for name, path := range map[string]string{"bucket": "?", "prefix": "/some/prefix?"} {
		t.Run(name, func(t *testing.T) {
			origintest.Driver(t, func(t *testing.T) origin.Bucket {
				u, err := url.Parse(strings.Replace(server.Bucket(t, ""), "?", path, 1))
				if err != nil {
					t.Fatal(err)
				}
				b, err := Open(t.Context(), u, 64)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := b.Writer.(io.Closer).Close(); err != nil {
						t.Error(err)
					}
				})
				return b
			})
		})
	}
}

// failures of a bucket: each must be one line that says what to do, and must
// not look like a missing object.
func TestS3Failures(t *testing.T) {
	server := tests3.Start(t)
	good := server.Bucket(t, "")
	cases := []struct {
		name  string
		url   string
		setup func(t testing.TB)
		want  []string
		is    error
	}{
		{"no credentials", good, tests3.NoLogin, []string{"AWS_ACCESS_KEY_ID", "AWS_PROFILE"}, origin.ErrRefused},
		{"wrong secret", good, func(t testing.TB) { t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-hidden") },
			[]string{"(403 ", "check the credentials"}, origin.ErrRefused},
		{"unknown user", good, func(t testing.TB) { t.Setenv("AWS_ACCESS_KEY_ID", "nobody") },
			[]string{"No user exists"}, nil}, // S3 itself would say 403
		{"nobody listens", "s3://b?endpoint=http://127.0.0.1:1", nil, []string{"cannot reach 127.0.0.1:1", "refused"}, nil},
		{"no such bucket", "s3://missing?endpoint=" + server.URL, nil, []string{"no such bucket", "s3://missing"}, errNoBucket},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.setup != nil {
				c.setup(t)
			}
			o := open(t, c.url)
			sample := chunktest.Sample(1, chunk.MinSize)
			_, getErr := o.Manifests("r1", "t").Get(t.Context(), "x")
			_, putErr := o.Chunks("r1").Put(t.Context(), sample.Name, sample.Data)
			_, rootErr := o.Active(t.Context())
			for verb, err := range map[string]error{"get": getErr, "put": putErr, "active": rootErr} {
				checkFailure(t, verb, err, c.is, c.want)
				for _, secret := range []string{server.Secret, "wrong-and-hidden"} {
					if err != nil && strings.Contains(err.Error(), secret) {
						t.Errorf("%s: the error holds the secret: %v", verb, err)
					}
				}
			}
		})
	}
}

func checkFailure(t *testing.T, verb string, err, is error, want []string) {
	t.Helper()
	if err == nil || errors.Is(err, origin.ErrNotFound) || errors.Is(err, chunk.ErrNotFound) {
		t.Fatalf("%s: %v", verb, err)
	}
	if is != nil && !errors.Is(err, is) {
		t.Errorf("%s: %v is not %v", verb, err, is)
	}
	for _, w := range append(want, "origin: ") {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %q does not say %q", verb, err, w)
		}
	}
	if strings.ContainsAny(err.Error(), "\n\t") {
		t.Errorf("%s: more than one line: %q", verb, err)
	}
}

func TestS3NeedsARegion(t *testing.T) {
	tests3.NoLogin(t)
	for raw, want := range map[string]string{
		"s3://b":          "region",
		"s3:///?region=x": "bucket",
		"s3://b?endpoint=http://h&use_path_style=maybe": "use_path_style",
		"s3://b?region=x&typo=1":                        "typo",
	} {
		if _, err := openURL(t, raw); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q in it", raw, err, want)
		}
	}
}

// broken gives a bucket of the server behind a proxy that breaks exchanges.
func broken(t *testing.T, s *tests3.Server, rule faults.Rule) *origin.Origin {
	t.Helper()
	return open(t, s.Bucket(t, s.Front(t, rule, "").URL))
}

// TestS3Faults puts and gets through single faults, which must not show.
func TestS3Faults(t *testing.T) {
	server := tests3.Start(t)
	put, get := "PUT", "GET"
	cases := []struct {
		name   string
		method string
		times  int64
		fault  faults.Fault
		added  bool // what Put must say
	}{
		{"busy", put, 2, faults.Fault{Kind: faults.Status, Status: 503}, true},
		{"conflict", put, 2, faults.Fault{Kind: faults.Status, Status: 409}, true},
		{"reset put", put, 1, faults.Fault{Kind: faults.Reset}, true},
		{"lost reply of a put", put, 1, faults.Fault{Kind: faults.Lose}, false},
		{"lost replies of all attempts", put, 3, faults.Fault{Kind: faults.Lose}, false},
		{"lost reply of a get", get, 1, faults.Fault{Kind: faults.Lose}, true},
		{"body breaks off", get, 2, faults.Fault{Kind: faults.Truncate, At: 1000}, true},
		{"slow", get, 1, faults.Fault{Kind: faults.Delay, Delay: time.Millisecond}, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			chunks := broken(t, server, faults.OnMethod(c.fault, c.method, c.times)).Chunks("r1")
			want := chunktest.Sample(1, chunk.DefaultSize)
			added, err := chunks.Put(t.Context(), want.Name, want.Data)
			if err != nil || added != c.added {
				t.Fatalf("Put: added %v, %v", added, err)
			}
			got, err := chunks.Get(t.Context(), want.Name)
			if err == nil {
				err = chunk.Check(got, want.Name)
			}
			if err != nil {
				t.Fatalf("Get: %v", err)
			}
		})
	}
}

// TestS3FaultsThatStay must end in an error, in bounded time.
func TestS3FaultsThatStay(t *testing.T) {
	server := tests3.Start(t)
	cases := map[string]struct {
		method string
		fault  faults.Fault
	}{
		"busy":            {"PUT", faults.Fault{Kind: faults.Status, Status: 503}},
		"conflict":        {"PUT", faults.Fault{Kind: faults.Status, Status: 409}},
		"body breaks off": {"GET", faults.Fault{Kind: faults.Truncate, At: 1000}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			chunks := broken(t, server, faults.OnMethod(c.fault, c.method, 1000)).Chunks("r1")
			want := chunktest.Sample(1, chunk.DefaultSize)
			_, err := chunks.Put(t.Context(), want.Name, want.Data)
			if err == nil {
				_, err = chunks.Get(t.Context(), want.Name)
			}
			checkFailure(t, c.method, err, nil, nil)
		})
	}
	t.Run("a server that hangs", func(t *testing.T) {
		hang := faults.Fault{Kind: faults.Delay, Delay: time.Hour}
		o := broken(t, server, faults.OnMethod(hang, "GET", 1000))
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := o.Manifests("r1", "t").Get(ctx, "x"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

// TestS3FlippedByte shows who notices: the name's check, not the origin.
func TestS3FlippedByte(t *testing.T) {
	server := tests3.Start(t)
	flip := faults.Fault{Kind: faults.Flip, At: 1000}
	chunks := broken(t, server, faults.OnMethod(flip, "GET", 1)).Chunks("r1")
	want := chunktest.Sample(1, chunk.DefaultSize)
	if _, err := chunks.Put(t.Context(), want.Name, want.Data); err != nil {
		t.Fatal(err)
	}
	got, err := chunks.Get(t.Context(), want.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := chunk.Check(got, want.Name); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("%v", err)
	}
}
