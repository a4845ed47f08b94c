// Package keys wraps small secrets, such as a manifest's data key, with a
// tenant's key that stays where a URL says:
//
//	file:///path/KEY                              a key file, made if absent
//	awskms:///KEY?region=R                        AWS KMS: key id, alias or ARN
//	gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K
//	azurekeyvault://V.vault.azure.net/keys/K/VERSION
//	hashivault://KEY?engine=transit               Vault at $VAULT_ADDR
//
// What reaches a service comes from its usual environment: credentials never
// stand in the URL, which shell history and process lists show.
//
// A key file is 64 lower-case hex digits and a newline, of mode 0600. It wraps
// a value as
//
//	nonce 12 ‖ AES-256-GCM(key, nonce, value, "thaw key file v1\x00") ‖ tag 16
//
// with a random nonce, good for 2^32 values (NIST SP 800-38D, §8.3). Package
// keys/kms has the others.
package keys

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
)

// ErrRefused says that a value was not wrapped by this key, or was changed
// since. The text says no more, and which of the two is not known.
var ErrRefused = errors.New("keys: the tenant's key does not open this")

const (
	// maxPlain is the bound of a value in bytes: room for a data key and
	// hashes. Azure's smallest keys hold 178 (RSA-2048, OAEP-SHA-256, our word).
	maxPlain = 2048
	// maxWrapped is the bound of a wrapped value in bytes: its length fits into
	// two bytes wherever it is stored.
	maxWrapped = 1<<16 - 1
	// maxURL is the bound of a key URL in bytes, that of a manifest.
	maxURL = 4096
)

// Keeper wraps small secrets with one tenant's key. Safe for concurrent use.
type Keeper interface {
	// Wrap encrypts and authenticates plain, of at most 2048 bytes. Its result
	// has at most 65,535 bytes and differs from call to call.
	Wrap(ctx context.Context, plain []byte) ([]byte, error)
	// Unwrap is the inverse. It gives ErrRefused for a value of another key or
	// a damaged one; any other error is one of the key's place and may pass.
	Unwrap(ctx context.Context, wrapped []byte) ([]byte, error)
}

// Tenant is the Keeper behind one URL. It prints as its URL. Close it.
type Tenant struct {
	url    string
	keeper Keeper
}

// Option changes what Open does.
type Option func(*settings)

type settings struct {
	create  bool
	drivers map[string]func(ctx context.Context, u *url.URL) (Keeper, error) // by scheme
}

// WithDriver has URLs of a scheme opened by open, which must not reach out, and
// must not repeat the URL in errors; they are of one line. A Keeper that is an
// io.Closer is closed with its Tenant. Package keystest holds it to its
// contract.
func WithDriver(scheme string, open func(ctx context.Context, u *url.URL) (Keeper, error)) Option {
	return func(s *settings) { s.drivers[scheme] = open }
}

// Open gives the tenant's key at a URL. A key file that is absent is made,
// once, with the folders above it (mode 0700): processes that race for it
// agree on one. Services are not called before the first Wrap or Unwrap; they
// need a driver (WithDriver; package kms has one): their SDKs are kept out of
// programs that read a file, which start in a quarter of the time.
func Open(ctx context.Context, keyURL string, options ...Option) (*Tenant, error) {
	return open(ctx, keyURL, append(options, func(s *settings) { s.create = true }))
}

// OpenExisting is Open for whoever only reads: it makes no key file, so that a
// lost key is not hidden behind a new one.
func OpenExisting(ctx context.Context, keyURL string, options ...Option) (*Tenant, error) {
	return open(ctx, keyURL, options)
}

func open(ctx context.Context, keyURL string, options []Option) (*Tenant, error) {
	s := settings{drivers: map[string]func(context.Context, *url.URL) (Keeper, error){}}
	for _, option := range options {
		option(&s)
	}
	u, err := parseURL(keyURL)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	driver := s.drivers[u.Scheme]
	switch {
	case driver == nil && u.Scheme == "file":
		return openFile(u, s.create)
	case driver == nil:
		return nil, fmt.Errorf("keys: %s key: is not supported: use file, awskms, gcpkms, azurekeyvault or hashivault", u.Scheme)
	}
	keeper, err := driver(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("keys: %s key: %w", u.Scheme, err)
	}
	return &Tenant{url: keyURL, keeper: keeper}, nil
}

// parseURL refuses whatever may hold a secret. Its errors do not quote the
// URL, for the same reason.
func parseURL(s string) (*url.URL, error) {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return nil, fmt.Errorf("keys: key URL has byte %#02x at %d: escape it", s[i], i)
		}
	}
	u, err := url.Parse(s)
	if err != nil || len(s) > maxURL {
		return nil, errors.New("keys: key URL does not parse: want file:///path/KEY or a key service's URL")
	}
	switch {
	case u.Scheme == "base64key":
		return nil, errors.New("keys: base64key:// carries the key itself, and shell history and process lists show URLs: use file:///path/KEY")
	case u.User != nil:
		return nil, errors.New("keys: key URL carries credentials, and shell history and process lists show URLs: put them into the environment")
	case u.Fragment != "" || u.Opaque != "":
		return nil, errors.New("keys: key URL has a part that no key service takes: want SCHEME://KEY")
	}
	return u, nil
}

// URL gives the key's URL in printable ASCII, without secrets.
func (t *Tenant) URL() string { return t.url }

// Wrap implements Keeper.
func (t *Tenant) Wrap(ctx context.Context, plain []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(plain) > maxPlain {
		return nil, fmt.Errorf("keys: cannot wrap %d bytes: at most %d", len(plain), maxPlain)
	}
	wrapped, err := t.keeper.Wrap(ctx, plain)
	if err == nil && len(wrapped) > maxWrapped {
		return nil, fmt.Errorf("keys: wrapped value has %d bytes: at most %d", len(wrapped), maxWrapped)
	}
	return wrapped, err
}

// Unwrap implements Keeper.
func (t *Tenant) Unwrap(ctx context.Context, wrapped []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(wrapped) == 0 || len(wrapped) > maxWrapped {
		return nil, ErrRefused
	}
	return t.keeper.Unwrap(ctx, wrapped)
}

// Close lets go of connections. The Tenant must not be used after it.
func (t *Tenant) Close() error {
	if c, ok := t.keeper.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// String gives the key's URL.
func (t Tenant) String() string { return t.url }

// Format gives the key's URL for every verb, and nothing of the key.
func (t Tenant) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(t.url)) }
