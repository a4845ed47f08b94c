package cloud

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/smithy-go"

	"thaw/internal/tests3"
)

// TestObjects reads what a real server has, within bounds.
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
	any := open("")
	for limit, want := range map[int64]string{100: "0123456789", 10: "0123456789", 5: "012345"} {
		if got, err := any.Get(t.Context(), bucket, "code.zip", "", limit); err != nil || string(got) != want {
			t.Errorf("at most %d: %q, %v", limit, got, err)
		}
	}
	var said smithy.APIError
	if _, err := any.Get(t.Context(), bucket, "none", "", 1); !errors.As(err, &said) || said.ErrorCode() != "NoSuchKey" {
		t.Errorf("no object: %v", err)
	}
	if _, err := any.Get(t.Context(), "nobucket", "none", "", 1); !errors.As(err, &said) || said.ErrorCode() != "NoSuchBucket" {
		t.Errorf("no bucket: %v", err)
	}
	if _, err := open(bucket).Get(t.Context(), bucket, "code.zip", "", 10); err != nil {
		t.Error(err)
	}
	if _, err := open("other").Get(t.Context(), bucket, "code.zip", "", 10); !errors.Is(err, ErrOtherBucket) {
		t.Errorf("another bucket: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(server.Objects(), "other"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"../" + bucket + "/code.zip", "a/../../" + bucket + "/code.zip", ".."} {
		if got, err := open("other").Get(t.Context(), "other", key, "", 10); !errors.Is(err, ErrOtherBucket) {
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
