package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
)

func mustOpen(t *testing.T, u string) *Tenant {
	t.Helper()
	k, err := Open(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// TestURLsRefused: none of the refusals may repeat what stands in the URL.
func TestURLsRefused(t *testing.T) {
	const secret = "hunter2"
	for u, want := range map[string]string{
		"awskms://key": "not supported",
		"":             "not supported", "/keys/hunter2": "not supported", "hunter2": "not supported", "http://h/hunter2": "not supported",
		"base64key://hunter2":                    "file:///path/KEY",
		"base64key://":                           "file:///path/KEY",
		"awskms://id:hunter2@key":                "environment",
		"hashivault://hunter2@key":               "environment",
		"file://user:hunter2@/keys/a":            "environment",
		"file://hunter2/a":                       "three slashes",
		"file:hunter2":                           "want SCHEME",
		"file://":                                "three slashes",
		"file:///a/../hunter2":                   "clean path",
		"file:///a/hunter2/":                     "clean path",
		"file:///a?key=hunter2":                  "clean path",
		"file:///a#hunter2":                      "want SCHEME",
		"file:///a hunter2":                      "escape",
		"file:///a\nhunter2":                     "escape",
		"file:///%zzhunter2":                     "does not parse",
		"file:///" + strings.Repeat("a", maxURL): "does not parse",
	} {
		k, err := Open(t.Context(), u)
		if k != nil || err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v; want one line with %q", u, err, want)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%q: the refusal repeats it: %v", u, err)
		}
	}
}

func TestOpenWithEndedContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	path := filepath.Join(t.TempDir(), "keys", "a")
	if _, err := Open(ctx, "file://"+path); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
}

// fake is a driver's Keeper that keeps no rules.
type fake struct{ closed *bool }

func (fake) Wrap(context.Context, []byte) ([]byte, error)       { return make([]byte, maxWrapped+1), nil }
func (fake) Unwrap(_ context.Context, w []byte) ([]byte, error) { return w, nil }
func (f fake) Close() error                                     { *f.closed = true; return nil }

func TestDrivers(t *testing.T) {
	var closed bool
	good := WithDriver("fake", func(_ context.Context, u *url.URL) (Keeper, error) { return fake{&closed}, nil })
	k, err := OpenExisting(t.Context(), "fake://a/b?c=d", good)
	if err != nil || k.URL() != "fake://a/b?c=d" {
		t.Fatalf("%v, %v", k, err)
	}
	if got, err := k.Wrap(t.Context(), []byte("x")); err == nil {
		t.Errorf("%d bytes were taken for a wrapped value", len(got))
	}
	if _, err := k.Unwrap(t.Context(), nil); !errors.Is(err, ErrRefused) {
		t.Errorf("nothing was unwrapped: %v", err)
	}
	bad := WithDriver("fake", func(context.Context, *url.URL) (Keeper, error) { return nil, errors.New("no such luck") })
	if _, err := Open(t.Context(), "fake://a", bad); err == nil || err.Error() != "keys: fake key: no such luck" {
		t.Errorf("%v", err)
	}
}

func TestNothingPrints(t *testing.T) {
	var closed bool
	driver := WithDriver("fake", func(context.Context, *url.URL) (Keeper, error) { return fake{&closed}, nil })
	other, err := Open(t.Context(), "fake://key", driver)
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]*Tenant{"file": mustOpen(t, "file://"+privateDir(t)+"/one"), "driver": other} {
		var log bytes.Buffer
		for _, v := range []any{k, *k, []Tenant{*k}, map[string]*Tenant{"k": k}} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
				fmt.Fprintf(&log, verb+"\n", v)
			}
			slog.New(slog.NewTextHandler(&log, nil)).Info("m", "v", v)
			slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "v", v)
		}
		for _, inside := range []string{"aead", "cipher", "gcm", "keeper", "0x"} {
			if strings.Contains(strings.ToLower(strings.ReplaceAll(log.String(), "KeyFile", "")), inside) {
				t.Errorf("%s: prints its insides: %s", name, log.String())
			}
		}
	}
	if err := other.Close(); err != nil || !closed {
		t.Errorf("closed %v, %v", closed, err)
	}
}
