package cloud

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/smithy-go"

	"thaw/internal/tests3"
)

// TestObjects reads what a real server has, where it may.
func TestObjects(t *testing.T) {
	server := tests3.Start(t)
	at, err := url.Parse(server.Bucket(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	bucket := at.Host
	if err := os.WriteFile(filepath.Join(server.Objects(), bucket, "code.zip"), []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(host string) *Objects {
		t.Helper()
		u := *at
		u.Host = host
		o, err := OpenObjects(t.Context(), &u)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	get := func(o *Objects, bucket, key string) (string, error) {
		t.Helper()
		body, size, err := o.Get(t.Context(), bucket, key, "")
		if err != nil {
			return "", err
		}
		data, err := io.ReadAll(body)
		if size != int64(len(data)) {
			t.Errorf("%s: %d bytes, and it has %d", key, size, len(data))
		}
		return string(data), errors.Join(err, body.Close())
	}
	any := open("")
	if got, err := get(any, bucket, "code.zip"); err != nil || got != "0123456789" {
		t.Errorf("%q, %v", got, err)
	}
	var said smithy.APIError
	if _, err := get(any, bucket, "none"); !errors.As(err, &said) || said.ErrorCode() != "NoSuchKey" {
		t.Errorf("no object: %v", err)
	}
	if _, err := get(any, "nobucket", "none"); !errors.As(err, &said) || said.ErrorCode() != "NoSuchBucket" {
		t.Errorf("no bucket: %v", err)
	}
	if _, err := get(open(bucket), bucket, "code.zip"); err != nil {
		t.Error(err)
	}
	if _, err := get(open("other"), bucket, "code.zip"); !errors.Is(err, ErrOtherBucket) {
		t.Errorf("another bucket: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(server.Objects(), "other"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"../" + bucket + "/code.zip", "a/../../" + bucket + "/code.zip", ".."} {
		if got, err := get(open("other"), "other", key); !errors.Is(err, ErrOtherBucket) {
			t.Errorf("%s: %q, %v", key, got, err)
		}
	}
	for _, bad := range []string{"gs://b", "s3://b/prefix?region=r", "s3://id:key@b?region=r", "s3://b"} {
		u, err := url.Parse(bad)
		if err == nil {
			_, err = OpenObjects(t.Context(), u)
		}
		if err == nil || strings.Contains(err.Error(), "key@") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestObjectsCut has a server hang up in the middle of an object.
func TestObjectsCut(t *testing.T) {
	tests3.NoLogin(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		_, _ = w.Write([]byte("01234"))
	}))
	defer server.Close()
	u, err := url.Parse("s3://?endpoint=" + url.QueryEscape(server.URL))
	if err != nil {
		t.Fatal(err)
	}
	o, err := OpenObjects(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	body, size, err := o.Get(t.Context(), "bucket", "code.zip", "")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if data, err := io.ReadAll(body); err == nil || size != 10 || string(data) != "01234" {
		t.Errorf("%q of %d bytes, %v", data, size, err)
	}
}
