package frontend

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"thaw/invokewire"
	"thaw/sigv4"
)

// sessions makes short-lived keys for functions, and knows its own again
// without having kept them:
//
//	token  = base64url("1 " account " " end, in seconds since 1970 " " id) "." base64url(HMAC(key, "token" 0 that text))
//	secret = hex(HMAC(key, "secret" 0 that text))
//
// where key is derived from the fleet's token.
type sessions struct{ key []byte }

// maxSessionToken bounds what is looked at of a token that a client sends.
const maxSessionToken = 512

func newSessions(token string) sessions {
	return sessions{mac([]byte(token), "thaw session keys", "")}
}

func mac(key []byte, purpose, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(purpose + "\x00" + text))
	return h.Sum(nil)
}

// issue makes a key of an account that ends at a time.
func (s sessions) issue(account string, end time.Time) invokewire.Keys {
	id := "ASIA" + randomText(16)
	text := fmt.Sprintf("1 %s %d %s", account, end.Unix(), id)
	return invokewire.Keys{
		ID:     id,
		Secret: hex.EncodeToString(mac(s.key, "secret", text)),
		Token:  base64.RawURLEncoding.EncodeToString([]byte(text)) + "." + base64.RawURLEncoding.EncodeToString(mac(s.key, "token", text)),
	}
}

// find gives the key of an id and the token that came with it.
func (s sessions) find(id, token string) (sigv4.Key, error) {
	head, tail, ok := strings.Cut(token, ".")
	if !ok || len(token) > maxSessionToken {
		return sigv4.Key{}, sigv4.ErrUnknownKey
	}
	text, err1 := base64.RawURLEncoding.Strict().DecodeString(head)
	sum, err2 := base64.RawURLEncoding.Strict().DecodeString(tail)
	if err1 != nil || err2 != nil || !hmac.Equal(sum, mac(s.key, "token", string(text))) {
		return sigv4.Key{}, sigv4.ErrUnknownKey
	}
	var version int
	var account, own string
	var end int64
	if n, err := fmt.Sscanf(string(text), "%d %s %d %s", &version, &account, &end, &own); n != 4 || err != nil || version != 1 || own != id {
		return sigv4.Key{}, sigv4.ErrUnknownKey
	}
	return sigv4.Key{
		Secret: hex.EncodeToString(mac(s.key, "secret", string(text))), Account: account, Token: token, Expires: time.Unix(end, 0),
	}, nil
}
