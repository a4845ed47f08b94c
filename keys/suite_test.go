package keys

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	cloudkms "cloud.google.com/go/kms/apiv1"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"gocloud.dev/secrets/gcpkms"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// TestKeepers runs one suite over each kind of key, against servers on
// loopback. Azure's has no stand-in here.
func TestKeepers(t *testing.T) {
	for name, setup := range map[string]func(t *testing.T) opener{
		"file": setupFile, "awskms": setupAWS, "hashivault": setupVault, "gcpkms": setupGoogle,
	} {
		t.Run(name, func(t *testing.T) { keeperSuite(t, setup(t)) })
	}
}

// opener opens the key of that name: the same one each time.
type opener func(t *testing.T, name string) *Tenant

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

func setupFile(t *testing.T) opener {
	dir := filepath.Join(t.TempDir(), "keys")
	return func(t *testing.T, name string) *Tenant { return mustOpen(t, "file://"+filepath.Join(dir, name)) }
}

// fakeGoogle is Google's service: an unknown value is an invalid argument.
type fakeGoogle struct {
	kmspb.UnimplementedKeyManagementServiceServer
}

func (fakeGoogle) Encrypt(ctx context.Context, r *kmspb.EncryptRequest) (*kmspb.EncryptResponse, error) {
	wrapped, err := fakeKey(r.GetName()).Wrap(ctx, r.GetPlaintext())
	return &kmspb.EncryptResponse{Ciphertext: wrapped}, err
}

func (fakeGoogle) Decrypt(ctx context.Context, r *kmspb.DecryptRequest) (*kmspb.DecryptResponse, error) {
	plain, err := fakeKey(r.GetName()).Unwrap(ctx, r.GetCiphertext())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "Decryption failed: the ciphertext is invalid.")
	}
	return &kmspb.DecryptResponse{Plaintext: plain}, nil
}

// setupGoogle makes the Tenant itself: no URL leads to a server without TLS.
func setupGoogle(t *testing.T) opener {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	kmspb.RegisterKeyManagementServiceServer(server, fakeGoogle{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return func(t *testing.T, name string) *Tenant {
		client, err := cloudkms.NewKeyManagementClient(t.Context(), option.WithEndpoint(listener.Addr().String()),
			option.WithoutAuthentication(), option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
		if err != nil {
			t.Fatal(err)
		}
		s := closing{gcpkms.OpenKeeper(client, name, nil), func() { _ = client.Close() }}
		k := &Tenant{url: "gcpkms://" + name, keeper: &remote{"gcpkms", s}, close: s.Close}
		t.Cleanup(func() { _ = k.Close() })
		return k
	}
}

// fakeService answers for AWS KMS and Vault over HTTP, with their status codes
// and texts. Its keys are made of their names.
type fakeService struct {
	t       *testing.T
	deny    bool                                   // answer that access is denied
	stall   func(r *http.Request)                  // called first, if not nil
	answers func(w http.ResponseWriter, in []byte) // overrides the answer, if not nil
}

func fakeKey(name string) Keeper {
	key := sha256.Sum256([]byte(name))
	k, err := newFileKey(key[:])
	if err != nil {
		panic(err)
	}
	return k
}

func (f *fakeService) serve(w http.ResponseWriter, r *http.Request) {
	var body bytes.Buffer
	if _, err := body.ReadFrom(r.Body); err != nil {
		f.t.Error(err)
	}
	if f.stall != nil {
		f.stall(r)
	}
	if f.answers != nil {
		f.answers(w, body.Bytes())
		return
	}
	if target := r.Header.Get("X-Amz-Target"); target != "" {
		f.serveAWS(w, target, body.Bytes())
		return
	}
	f.serveVault(w, r, body.Bytes())
}

// serveAWS does as AWS does: a value tells its key, which is used if the
// request names none.
func (f *fakeService) serveAWS(w http.ResponseWriter, target string, body []byte) {
	var in struct {
		KeyID          string `json:"KeyId"`
		Plaintext      []byte
		CiphertextBlob []byte
	}
	if err := json.Unmarshal(body, &in); err != nil {
		f.t.Error(err)
	}
	fail := func(code string) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"__type":%q,"message":"the service's\nown words"}`, code)
	}
	switch {
	case f.deny:
		fail("AccessDeniedException")
	case target == "TrentService.Encrypt":
		wrapped, _ := fakeKey(in.KeyID).Wrap(f.t.Context(), in.Plaintext)
		blob := append(append([]byte(in.KeyID), 0), wrapped...)
		_ = json.NewEncoder(w).Encode(map[string]any{"CiphertextBlob": blob, "KeyId": in.KeyID})
	default:
		name, wrapped, ok := bytes.Cut(in.CiphertextBlob, []byte{0})
		plain, err := fakeKey(string(name)).Unwrap(f.t.Context(), wrapped)
		switch {
		case !ok || err != nil:
			fail("InvalidCiphertextException")
		case in.KeyID != "" && in.KeyID != string(name):
			fail("IncorrectKeyException")
		default:
			_ = json.NewEncoder(w).Encode(map[string]any{"Plaintext": plain, "KeyId": string(name)})
		}
	}
}

func (f *fakeService) serveVault(w http.ResponseWriter, r *http.Request, body []byte) {
	var in struct{ Plaintext, Ciphertext string }
	if err := json.Unmarshal(body, &in); err != nil {
		f.t.Error(err)
	}
	fail := func(status int, text string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"errors":[%q]}`, text)
	}
	var engine, verb, key string
	if parts := strings.Split(r.URL.Path, "/"); len(parts) == 5 {
		engine, verb, key = parts[2], parts[3], parts[4]
	}
	give := func(field, value string) {
		_ = json.NewEncoder(w).Encode(map[string]any{"data": map[string]string{field: value}})
	}
	switch {
	case f.deny || r.Header.Get("X-Vault-Token") != "hvs.token":
		fail(http.StatusForbidden, "permission denied")
	case engine != "transit":
		fail(http.StatusNotFound, "no handler for route")
	case verb == "encrypt":
		plain, _ := base64.StdEncoding.DecodeString(in.Plaintext)
		wrapped, _ := fakeKey(key).Wrap(f.t.Context(), plain)
		give("ciphertext", "vault:v1:"+base64.StdEncoding.EncodeToString(wrapped))
	default: // as Vault, with a decoder that is not strict
		text, _ := strings.CutPrefix(in.Ciphertext, "vault:v1:")
		wrapped, _ := base64.StdEncoding.DecodeString(text)
		plain, err := fakeKey(key).Unwrap(f.t.Context(), wrapped)
		if err != nil {
			fail(http.StatusBadRequest, "cipher: message authentication failed")
			return
		}
		give("plaintext", base64.StdEncoding.EncodeToString(plain))
	}
}

func startFake(t *testing.T) (*fakeService, string) {
	f := &fakeService{t: t}
	server := httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(server.Close)
	return f, server.URL
}

func setupAWS(t *testing.T) opener { _, open := startAWS(t); return open }

func startAWS(t *testing.T) (*fakeService, opener) {
	f, at := startFake(t)
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret-access", "AWS_PROFILE": "",
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
	return f, func(t *testing.T, name string) *Tenant {
		return mustOpen(t, "awskms:///alias/"+name+"?region=eu-central-1&endpoint="+url.QueryEscape(at))
	}
}

func setupVault(t *testing.T) opener { _, open := startVault(t); return open }

func startVault(t *testing.T) (*fakeService, opener) {
	f, at := startFake(t)
	t.Setenv("VAULT_ADDR", at)
	t.Setenv("VAULT_TOKEN", "hvs.token")
	return f, func(t *testing.T, name string) *Tenant { return mustOpen(t, "hashivault://"+name) }
}

// keeperSuite holds a Keeper to its contract.
func keeperSuite(t *testing.T, open opener) {
	one, again, other := open(t, "one"), open(t, "one"), open(t, "other")
	value := []byte("a data key and two hashes")
	wrapped, err := one.Wrap(t.Context(), value)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("round trip", func(t *testing.T) { testRoundTrip(t, one, again) })
	t.Run("the same key does it, another does not", func(t *testing.T) {
		if got, err := again.Unwrap(t.Context(), wrapped); err != nil || !bytes.Equal(got, value) {
			t.Errorf("%q, %v", got, err)
		}
		checkRefused(t, "another key", other, wrapped)
	})
	t.Run("damage", func(t *testing.T) { testDamage(t, one, wrapped) })
	t.Run("no two are equal", func(t *testing.T) {
		next, err := one.Wrap(t.Context(), value)
		if err != nil || bytes.Equal(next, wrapped) || bytes.Contains(next, value) {
			t.Errorf("wrapped to %x and %x, %v", wrapped, next, err)
		}
	})
	t.Run("bounds", func(t *testing.T) {
		if _, err := one.Wrap(t.Context(), make([]byte, maxPlain+1)); err == nil {
			t.Error("wrapped more than the bound")
		}
	})
	t.Run("ended context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err1 := one.Wrap(ctx, value)
		_, err2 := one.Unwrap(ctx, wrapped)
		if !errors.Is(err1, context.Canceled) || !errors.Is(err2, context.Canceled) || errors.Is(err2, ErrRefused) {
			t.Errorf("%v, %v; want context.Canceled", err1, err2)
		}
	})
	t.Run("concurrent", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { testRoundTrip(t, one, one) })
		}
		wg.Wait()
	})
}

func testRoundTrip(t *testing.T, wrap, unwrap *Tenant) {
	for _, n := range []int{0, 1, 32, 96, maxPlain} {
		value := bytes.Repeat([]byte{byte(n)}, n)
		wrapped, err := wrap.Wrap(t.Context(), value)
		if err != nil || len(wrapped) > maxWrapped {
			t.Errorf("%d bytes: wrapped to %d, %v", n, len(wrapped), err)
			continue
		}
		kept := bytes.Clone(wrapped)
		got, err := unwrap.Unwrap(t.Context(), wrapped)
		if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(n)}, n)) {
			t.Errorf("%d bytes: unwrapped to %d, %v", n, len(got), err)
		}
		if !bytes.Equal(wrapped, kept) || !bytes.Equal(value, bytes.Repeat([]byte{byte(n)}, n)) {
			t.Errorf("%d bytes: the caller's bytes were changed", n)
		}
	}
}

// testDamage flips every bit, and cuts and grows the value.
func testDamage(t *testing.T, k *Tenant, wrapped []byte) {
	for i := range wrapped {
		for bit := range 8 {
			bad := bytes.Clone(wrapped)
			bad[i] ^= 1 << bit
			checkRefused(t, fmt.Sprintf("bit %d of byte %d", bit, i), k, bad)
		}
	}
	for _, bad := range [][]byte{nil, {}, {0}, wrapped[:1], wrapped[:12], wrapped[:len(wrapped)-1], wrapped[1:],
		append(bytes.Clone(wrapped), 0), append(bytes.Clone(wrapped), '\n'), append(bytes.Clone(wrapped), wrapped...),
		make([]byte, maxWrapped), make([]byte, maxWrapped+1)} {
		checkRefused(t, fmt.Sprintf("%d bytes", len(bad)), k, bad)
	}
}

// checkRefused wants the one text of all refusals.
func checkRefused(t *testing.T, about string, k Keeper, wrapped []byte) {
	t.Helper()
	got, err := k.Unwrap(t.Context(), wrapped)
	if got != nil || !errors.Is(err, ErrRefused) || err.Error() != "keys: the tenant's key does not open this" {
		t.Errorf("%s: %q, %v; want ErrRefused and nothing more", about, got, err)
	}
}

func TestNothingPrints(t *testing.T) {
	for name, setup := range map[string]func(t *testing.T) opener{"file": setupFile, "vault": setupVault} {
		k := setup(t)(t, "one")
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
}
