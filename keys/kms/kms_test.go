package kms

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"thaw/keys"
	"thaw/keys/keystest"
)

// TestURLsRefused: none of the refusals may repeat what stands in the URL.
func TestURLsRefused(t *testing.T) {
	t.Setenv("VAULT_ADDR", "https://vault.example")
	const secret = "hunter2"
	for u, want := range map[string]string{
		"awskms://":                      "names no key",
		"awskms:///a?hunter2=1&region=x": "",
		"awskms:///a?endpoint=http://kms.example/hunter2":             "https",
		"awskms:///a?endpoint=http://10.0.0.1/hunter2":                "https",
		"awskms:///a?endpoint=https://u:hunter2@kms.example":          "https://HOST",
		"gcpkms://projects/p?token=hunter2":                           "takes none",
		"azurekeyvault://v.vault.azure.net/keys/hunter2":              "VERSION",
		"azurekeyvault://v.vault.azure.net/keys/k/1?algorithm=RSA1_5": "without parameters",
		"azurekeyvault://example.com/keys/k/1":                        "",
		"hashivault://k?token=hunter2":                                "MOUNT",
		"hashivault://k?engine=../sys/hunter2":                        "MOUNT",
		"hashivault://../hunter2":                                     "names no key",
		"hashivault://a/b/hunter2":                                    "MOUNT",
	} {
		k, err := openURL(t, u)
		if k != nil || err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v; want one line with %q", u, err, want)
		}
		if err != nil && strings.Contains(err.Error(), secret) && !strings.HasPrefix(u, "awskms:///a?hunter2") {
			t.Errorf("%q: the refusal repeats it: %v", u, err)
		}
	}
}

func TestVaultNeedsAServer(t *testing.T) {
	for addr, want := range map[string]string{"": "is not set", "http://vault.example:8200": "https", "::": ""} {
		t.Setenv("VAULT_ADDR", addr)
		if _, err := openURL(t, "hashivault://k"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("VAULT_ADDR=%s: %v, want %q", addr, err, want)
		}
	}
}

// TestCloudsOpenWithoutNetwork: their services cannot be reached from a test,
// so a call at Open would fail or hang.
func TestCloudsOpenWithoutNetwork(t *testing.T) {
	creds := filepath.Join(t.TempDir(), "creds.json")
	b, _ := json.Marshal(map[string]string{"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"})
	if err := os.WriteFile(creds, b, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", creds)
	t.Setenv("VAULT_ADDR", "https://192.0.2.1:8200") // TEST-NET-1: nobody there
	for _, u := range []string{
		"awskms:///arn:aws:kms:eu-central-1:111122223333:key/1234abcd?region=eu-central-1",
		"awskms://1234abcd-12ab-34cd?region=eu-central-1",
		"gcpkms://projects/p/locations/global/keyRings/r/cryptoKeys/k",
		"azurekeyvault://v.vault.azure.net/keys/k/0123456789abcdef",
		"hashivault://tenant-a",
		"hashivault://tenant-a?engine=team/transit",
	} {
		if k := mustOpen(t, u); k.URL() != u || k.String() != u {
			t.Errorf("URL %s, opened %s", k.URL(), u)
		}
	}
}

// TestServiceErrorsAreNotRefusals: a tenant whose access was taken away must
// not be told that the data is damaged, and the other way round.
func TestServiceErrorsAreNotRefusals(t *testing.T) {
	for name, start := range map[string]func(t *testing.T) (*fakeService, opener){"awskms": startAWS, "hashivault": startVault} {
		t.Run(name, func(t *testing.T) {
			fake, open := start(t)
			k := open(t, "one")
			wrapped, err := k.Wrap(t.Context(), []byte("x"))
			if err != nil {
				t.Fatal(err)
			}
			fake.deny = true
			for _, call := range []func(context.Context, []byte) ([]byte, error){k.Wrap, k.Unwrap} {
				_, err := call(t.Context(), wrapped)
				if err == nil || errors.Is(err, keys.ErrRefused) || !strings.Contains(strings.ToLower(err.Error()), "denied") {
					t.Errorf("%v, want the service's denial", err)
				}
				if err != nil && (strings.Contains(err.Error(), "\n") || len(err.Error()) > maxErrorText+100 ||
					strings.Contains(err.Error(), "hvs.token") || strings.Contains(err.Error(), "secret-access")) {
					t.Errorf("%q: want one short line without credentials", err)
				}
			}
		})
	}
}

// TestForeignValues: what the service's key encrypted for others is not ours.
func TestForeignValues(t *testing.T) {
	value := []byte("somebody else's, of the same key")
	for name, c := range map[string]struct {
		setup   func(t *testing.T) opener
		foreign []byte
	}{
		"awskms":     {setupAWS, append([]byte("alias/one\x00"), fakeKey("alias/one").wrap(value)...)},
		"hashivault": {setupVault, []byte("vault:v1:" + base64.StdEncoding.EncodeToString(fakeKey("one").wrap(value)))},
		"gcpkms":     {setupGoogle, fakeKey("one").wrap(value)},
	} {
		t.Run(name, func(t *testing.T) {
			keystest.CheckRefused(t, "a value without our word", c.setup(t)(t, "one"), c.foreign)
		})
	}
}

func TestStrangeAnswers(t *testing.T) {
	fake, open := startVault(t)
	k := open(t, "one")
	wrapped, err := k.Wrap(t.Context(), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	for _, answer := range []string{"", "{}", `{"data":{}}`, `{"data":{"plaintext":1,"ciphertext":1}}`, `{"data":{"plaintext":"!","ciphertext":"!"}}`, "<html>"} {
		fake.answers = func(w http.ResponseWriter, _ []byte) { _, _ = w.Write([]byte(answer)) }
		if got, err := k.Unwrap(t.Context(), wrapped); err == nil || errors.Is(err, keys.ErrRefused) {
			t.Errorf("Unwrap after the answer %q: %q, %v; want an error of the service", answer, got, err)
		}
		if got, err := k.Wrap(t.Context(), []byte("x")); err == nil {
			t.Errorf("Wrap after the answer %q: %q", answer, got)
		}
	}
}

// TestCancelInFlight cancels while the service sits on its answer.
func TestCancelInFlight(t *testing.T) {
	for name, start := range map[string]func(t *testing.T) (*fakeService, opener){"awskms": startAWS, "hashivault": startVault} {
		t.Run(name, func(t *testing.T) {
			fake, open := start(t)
			k := open(t, "one")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			fake.stall = func(r *http.Request) {
				cancel()
				<-r.Context().Done() // the client has gone
			}
			if _, err := k.Wrap(ctx, []byte("x")); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want context.Canceled", err)
			}
		})
	}
}
