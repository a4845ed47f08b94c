package kms

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	cloudkms "cloud.google.com/go/kms/apiv1"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"gocloud.dev/secrets/gcpkms"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"thaw/keys"
	"thaw/keys/keystest"
)

// TestKeepers runs one suite over each kind of key, against servers on
// loopback. Azure's has no stand-in here.
func TestKeepers(t *testing.T) {
	for name, setup := range map[string]func(t *testing.T) opener{"awskms": setupAWS, "hashivault": setupVault, "gcpkms": setupGoogle} {
		t.Run(name, func(t *testing.T) { keystest.Keeper(t, setup(t)) })
	}
}

// opener opens the key of that name: the same one each time.
type opener func(t *testing.T, name string) *keys.Tenant

// openURL opens a key with this package's driver.
func openURL(t *testing.T, u string) (*keys.Tenant, error) {
	t.Helper()
	var opts []keys.Option
	for _, scheme := range []string{"awskms", "gcpkms", "azurekeyvault", "hashivault"} {
		opts = append(opts, keys.WithDriver(scheme, Open))
	}
	return keys.Open(t.Context(), u, opts...)
}

func mustOpen(t *testing.T, u string) *keys.Tenant {
	t.Helper()
	k, err := openURL(t, u)
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

// fakeGoogle is Google's service: an unknown value is an invalid argument.
type fakeGoogle struct {
	kmspb.UnimplementedKeyManagementServiceServer
}

func (fakeGoogle) Encrypt(_ context.Context, r *kmspb.EncryptRequest) (*kmspb.EncryptResponse, error) {
	return &kmspb.EncryptResponse{Ciphertext: fakeKey(r.GetName()).wrap(r.GetPlaintext())}, nil
}

func (fakeGoogle) Decrypt(_ context.Context, r *kmspb.DecryptRequest) (*kmspb.DecryptResponse, error) {
	plain, err := fakeKey(r.GetName()).unwrap(r.GetCiphertext())
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
	return func(t *testing.T, name string) *keys.Tenant {
		client, err := cloudkms.NewKeyManagementClient(t.Context(), option.WithEndpoint(listener.Addr().String()),
			option.WithoutAuthentication(), option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
		if err != nil {
			t.Fatal(err)
		}
		s := closing{gcpkms.OpenKeeper(client, name, nil), func() { _ = client.Close() }}
		driver := func(context.Context, *url.URL) (keys.Keeper, error) { return &remote{"gcpkms", s}, nil }
		k, err := keys.Open(t.Context(), "gcpkms://"+name, keys.WithDriver("gcpkms", driver))
		if err != nil {
			t.Fatal(err)
		}
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

// fakeKey is the key of a name, inside of a service.
type fakeKey string

func (k fakeKey) aead() cipher.AEAD {
	key := sha256.Sum256([]byte(k))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return aead
}

func (k fakeKey) wrap(plain []byte) []byte { return k.aead().Seal(nil, nil, plain, nil) }

func (k fakeKey) unwrap(wrapped []byte) ([]byte, error) { return k.aead().Open(nil, nil, wrapped, nil) }

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
		wrapped := fakeKey(in.KeyID).wrap(in.Plaintext)
		blob := append(append([]byte(in.KeyID), 0), wrapped...)
		_ = json.NewEncoder(w).Encode(map[string]any{"CiphertextBlob": blob, "KeyId": in.KeyID})
	default:
		name, wrapped, ok := bytes.Cut(in.CiphertextBlob, []byte{0})
		plain, err := fakeKey(name).unwrap(wrapped)
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
		wrapped := fakeKey(key).wrap(plain)
		give("ciphertext", "vault:v1:"+base64.StdEncoding.EncodeToString(wrapped))
	default: // as Vault, with a decoder that is not strict
		text, _ := strings.CutPrefix(in.Ciphertext, "vault:v1:")
		wrapped, _ := base64.StdEncoding.DecodeString(text)
		plain, err := fakeKey(key).unwrap(wrapped)
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
	return f, func(t *testing.T, name string) *keys.Tenant {
		return mustOpen(t, "awskms:///alias/"+name+"?region=eu-central-1&endpoint="+url.QueryEscape(at))
	}
}

func setupVault(t *testing.T) opener { _, open := startVault(t); return open }

func startVault(t *testing.T) (*fakeService, opener) {
	f, at := startFake(t)
	t.Setenv("VAULT_ADDR", at)
	t.Setenv("VAULT_TOKEN", "hvs.token")
	return f, func(t *testing.T, name string) *keys.Tenant { return mustOpen(t, "hashivault://"+name) }
}
