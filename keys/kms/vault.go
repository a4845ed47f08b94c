package kms

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"

	"github.com/hashicorp/vault/api"

	"thaw/keys"
)

const vaultScheme = "hashivault"

var (
	// vaultKey and vaultEngine keep a URL inside the engine's own paths.
	vaultKey    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
	vaultEngine = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]*(/[A-Za-z0-9_][A-Za-z0-9_-]*)*$`)
	// vaultValue is what the transit engine gives: a key version and base64.
	vaultValue = regexp.MustCompile(`^vault:v[1-9][0-9]*:([A-Za-z0-9+/]+=*)$`)
)

// vault is a key of Vault's transit engine. It speaks to Vault's own client,
// since the common one has no context: a call could not be cancelled.
type vault struct {
	client      *api.Client
	engine, key string
}

// openVault takes server, token and TLS settings from Vault's own environment
// variables (VAULT_ADDR, VAULT_TOKEN, VAULT_NAMESPACE, VAULT_CACERT, …).
func openVault(key string, query url.Values) (service, error) {
	engine := "transit"
	if query.Has("engine") {
		engine = query.Get("engine")
		query.Del("engine")
	}
	switch {
	case len(query) > 0 || !vaultKey.MatchString(key) || !vaultEngine.MatchString(engine):
		return nil, errors.New("its URL is not hashivault://KEY?engine=MOUNT")
	case os.Getenv("VAULT_ADDR") == "":
		return nil, errors.New("VAULT_ADDR is not set: set it to the server's URL")
	}
	config := api.DefaultConfig()
	if config.Error != nil {
		return nil, config.Error
	}
	if err := checkEndpoint(config.Address); err != nil {
		return nil, fmt.Errorf("VAULT_ADDR: %w", err)
	}
	client, err := api.NewClient(config)
	if err != nil {
		return nil, err
	}
	return &vault{client, engine, key}, nil
}

// Encrypt implements service.
func (v *vault) Encrypt(ctx context.Context, plain []byte) ([]byte, error) {
	s, err := v.call(ctx, "encrypt", "plaintext", base64.StdEncoding.EncodeToString(plain), "ciphertext")
	if err == nil && !canonical(s) {
		return nil, errors.New("its answer is no value of a transit engine")
	}
	return []byte(s), err
}

// Decrypt implements service.
func (v *vault) Decrypt(ctx context.Context, cipher []byte) ([]byte, error) {
	if !canonical(string(cipher)) {
		return nil, keys.ErrRefused
	}
	s, err := v.call(ctx, "decrypt", "ciphertext", string(cipher), "plaintext")
	if err != nil {
		return nil, err
	}
	plain, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, errors.New("its answer is no base64")
	}
	return plain, nil
}

// canonical refuses the other ways to write the same value: base64 has bits
// that a decoder does not look at, and a change there must be noticed too.
func canonical(s string) bool {
	m := vaultValue.FindStringSubmatch(s)
	if m == nil {
		return false
	}
	_, err := base64.StdEncoding.Strict().DecodeString(m[1])
	return err == nil
}

// call posts one field and gives one field of the answer.
func (v *vault) call(ctx context.Context, verb, field, value, want string) (string, error) {
	path := v.engine + "/" + verb + "/" + v.key
	answer, err := v.client.Logical().WriteWithContext(ctx, path, map[string]any{field: value})
	if err != nil {
		return "", err
	}
	if answer == nil {
		return "", fmt.Errorf("its answer lacks %s", want)
	}
	s, ok := answer.Data[want].(string)
	if !ok {
		return "", fmt.Errorf("its answer lacks %s", want)
	}
	return s, nil
}

// Close implements service.
func (v *vault) Close() error {
	v.client.CloneConfig().HttpClient.CloseIdleConnections()
	return nil
}
