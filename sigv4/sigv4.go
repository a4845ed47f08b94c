// Package sigv4 verifies AWS Signature Version 4 of a request as a server got it.
//
// What is signed is what is verified: exactly the headers that the client lists,
// the path as it came, encoded once more, the query as a reader decodes it, and the hash of
// the body. Host and every X-Amz-… header of the request must be in the list.
// Every X-Amz-… header, the time, the scope and the session token are
// therefore beyond the reach of who holds no key.
//
// Errors that are the client's are *Error, in AWS's words. They hold nothing
// of the signature or the key.
package sigv4

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

const (
	algorithm  = "AWS4-HMAC-SHA256"
	terminator = "aws4_request"
	unsigned   = "UNSIGNED-PAYLOAD"
	timeForm   = "20060102T150405Z"

	// skew is how far a client's clock may be off, as at AWS.
	skew = 5 * time.Minute
	// longest is how long a presigned URL may hold, as at AWS: seven days.
	longest = 7 * 24 * time.Hour
)

// ErrUnknownKey is what Options.Secret returns for a key that there is not, or
// that is revoked.
var ErrUnknownKey = errors.New("unknown access key")

// Identity is who signed a request.
type Identity struct {
	KeyID   string
	Account string // twelve digits
}

// Key is what signs and verifies.
type Key struct {
	Secret string
	// Account is whose requests these are.
	Account string
	// Token is the session token that must come with the key; empty: none may.
	Token string
	// Expires is when the key ends; zero: never.
	Expires time.Time
}

// Options say what is accepted.
type Options struct {
	// Secret finds a key; ErrUnknownKey if there is none. Other errors are
	// Verify's. It may be called by many goroutines.
	Secret func(ctx context.Context, keyID string) (Key, error)
	// Region and Service are those that the client must have signed for.
	Region, Service string
	// Now is the time; nil: time.Now.
	Now func() time.Time
	// Presigned accepts a signature in the query, and only then.
	Presigned bool
	// UnsignedPayload accepts requests that leave their body out of the
	// signature.
	UnsignedPayload bool
}

// Verify tells who signed a request, whose body has the given SHA-256, in lower-case
// hex. It reads no body and changes nothing. The error is *Error if the client
// is to blame, else that of Options.Secret.
func Verify(r *http.Request, bodySHA256 string, o Options) (Identity, error) {
	s, err := parse(r, o.Presigned)
	if err != nil {
		return Identity{}, err
	}
	now := time.Now()
	if o.Now != nil {
		now = o.Now()
	}
	if err := s.check(r, o, now.UTC()); err != nil {
		return Identity{}, err
	}
	payload, err := payloadHash(r, bodySHA256, o.UnsignedPayload)
	if err != nil {
		return Identity{}, err
	}
	key, err := o.Secret(r.Context(), s.keyID)
	if errors.Is(err, ErrUnknownKey) {
		return Identity{}, unrecognized()
	} else if err != nil {
		return Identity{}, fmt.Errorf("look up the access key of a request: %w", err)
	}
	if !s.made(key.Secret, r, payload) {
		return Identity{}, invalid("The request signature we calculated does not match the signature you provided. " +
			"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	}
	if subtle.ConstantTimeCompare([]byte(s.token), []byte(key.Token)) != 1 {
		return Identity{}, unrecognized()
	}
	if !key.Expires.IsZero() && !now.Before(key.Expires) {
		return Identity{}, &Error{code: "ExpiredTokenException", message: "The security token included in the request is expired"}
	}
	return Identity{KeyID: s.keyID, Account: key.Account}, nil
}

// check holds time, scope and list of headers to what is accepted.
func (s *signature) check(r *http.Request, o Options, now time.Time) error {
	day := s.at.Format("20060102")
	switch {
	case s.day != day:
		return invalid("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '%s' != '%s', from '%s'.",
			s.day, day, s.at.Format(timeForm))
	case s.region != o.Region:
		return invalid("Credential should be scoped to a valid region. ")
	case s.service != o.Service:
		return invalid("Credential should be scoped to correct service: '%s'. ", o.Service)
	case s.at.After(now.Add(skew)):
		return invalid("Signature not yet current: %s is still later than %s (%s + 5 min.)", stamp(s.at), stamp(now.Add(skew)), stamp(now))
	case s.expires == 0 && s.at.Before(now.Add(-skew)):
		return invalid("Signature expired: %s is now earlier than %s (%s - 5 min.)", stamp(s.at), stamp(now.Add(-skew)), stamp(now))
	case s.expires > 0 && s.at.Add(s.expires).Before(now):
		return invalid("Signature expired: %s is now earlier than %s (%s)", stamp(s.at.Add(s.expires)), stamp(now), stamp(now))
	}
	return s.covers(r)
}

func stamp(t time.Time) string { return t.UTC().Format(timeForm) }

// covers wants the host and every X-Amz-… header among the signed ones, and those in order.
func (s *signature) covers(r *http.Request) error {
	signed := map[string]bool{}
	last := ""
	for _, name := range s.headers {
		if name <= last || name != strings.ToLower(name) {
			return incomplete("Authorization header requires 'SignedHeaders' parameter to be sorted and in lower case.")
		}
		last = name
		signed[name] = true
	}
	if !signed["host"] {
		return invalid("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	for name := range r.Header {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "x-amz-") && !signed[name] {
			return invalid("'%s' must be a 'SignedHeader' in the AWS Authorization.", name)
		}
	}
	return nil
}

// payloadHash returns what stands for the body in what was signed.
func payloadHash(r *http.Request, actual string, mayBeUnsigned bool) (string, error) {
	claimed := r.Header.Get("X-Amz-Content-Sha256")
	switch {
	case claimed == "" || subtle.ConstantTimeCompare([]byte(claimed), []byte(actual)) == 1:
		return actual, nil
	case claimed == unsigned && mayBeUnsigned:
		return unsigned, nil
	case claimed == unsigned:
		return "", invalid("The payload of the request must be signed: '%s' is not allowed here.", unsigned)
	}
	return "", invalid("The provided 'x-amz-content-sha256' header does not match what was computed.")
}

// made tells whether the holder of the secret has signed the request. What
// clients disagree on, the order of equal names in a query, may be either way.
func (s *signature) made(secret string, r *http.Request, payload string) bool {
	key := sum([]byte("AWS4"+secret), s.day)
	for _, part := range []string{s.region, s.service, terminator} {
		key = sum(key, part)
	}
	scope := strings.Join([]string{s.day, s.region, s.service, terminator}, "/")
	good := 0
	for _, query := range queries(s.query) {
		canonical := strings.Join([]string{r.Method, path(r), query, s.canonicalHeaders(r), strings.Join(s.headers, ";"), payload}, "\n")
		hash := sha256.Sum256([]byte(canonical))
		text := strings.Join([]string{algorithm, s.at.Format(timeForm), scope, hex.EncodeToString(hash[:])}, "\n")
		good |= subtle.ConstantTimeCompare(sum(key, text), s.mac)
	}
	return good == 1
}

func sum(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}
