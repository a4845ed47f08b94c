// Package kms is package keys' driver for key services: AWS KMS, Google Cloud
// KMS, Azure Key Vault and HashiCorp Vault. It is a package of its own because
// their SDKs take milliseconds of every start of a program that they are linked
// into.
//
// A service wraps "thaw key v1\x00" ‖ value, so that nothing which the same key
// encrypts for others passes for ours.
package kms

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/hashicorp/vault/api"
	"gocloud.dev/gcerrors"

	"thaw/keys"
)

const (
	// serviceWord stands in front of every value that a service wraps.
	serviceWord = "thaw key v1\x00"
	// callTime bounds one call with its retries: the clients give up a single
	// try after some 10 s, and a manifest is not worth waiting for longer.
	callTime = 30 * time.Second
	// maxErrorText cuts a service's error, in bytes: some quote whole answers.
	maxErrorText = 400
)

// service is a key service with one key of it; *secrets.Keeper is one. Errors
// are told apart by refuses.
type service interface {
	Encrypt(ctx context.Context, plain []byte) ([]byte, error)
	Decrypt(ctx context.Context, cipher []byte) ([]byte, error)
	Close() error
}

// remote is the Keeper of a service.
type remote struct {
	scheme  string
	service service
}

// Wrap implements keys.Keeper.
func (r *remote) Wrap(ctx context.Context, plain []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	worded := append([]byte(serviceWord), plain...)
	defer clear(worded)
	wrapped, err := r.service.Encrypt(ctx, worded)
	if err != nil {
		return nil, fmt.Errorf("keys: wrap by %s: %w", r.scheme, ended(ctx, err))
	}
	return wrapped, nil
}

// Unwrap implements keys.Keeper.
func (r *remote) Unwrap(ctx context.Context, wrapped []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	worded, err := r.service.Decrypt(ctx, wrapped)
	if refuses(err) {
		return nil, keys.ErrRefused
	}
	if err != nil {
		return nil, fmt.Errorf("keys: unwrap by %s: %w", r.scheme, ended(ctx, err))
	}
	plain, ok := bytes.CutPrefix(worded, []byte(serviceWord))
	if !ok {
		return nil, keys.ErrRefused
	}
	return plain, nil
}

// Close implements io.Closer.
func (r *remote) Close() error { return r.service.Close() }

// refuses tells a service's "this is not mine" from all its other errors. AWS
// has two for it, Google and Azure an invalid argument, Vault status 400.
func refuses(err error) bool {
	var otherKey *types.IncorrectKeyException
	var vault *api.ResponseError
	return err != nil && (errors.Is(err, keys.ErrRefused) || errors.As(err, &otherKey) ||
		gcerrors.Code(err) == gcerrors.InvalidArgument ||
		errors.As(err, &vault) && vault.StatusCode == http.StatusBadRequest)
}

// ended puts the context's error into err if that is why it failed: not every
// client does.
func ended(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, oneLine(err))
	}
	return oneLine(err)
}

// oneLine makes an error's text one short line; Vault's have several.
func oneLine(err error) error { return lineError{err} }

type lineError struct{ error }

// Unwrap keeps errors.Is and errors.As working.
func (e lineError) Unwrap() error { return e.error }

// Error gives the line.
func (e lineError) Error() string {
	s := strings.Join(strings.Fields(e.error.Error()), " ")
	if len(s) > maxErrorText {
		s = s[:maxErrorText] + "…"
	}
	return s
}
