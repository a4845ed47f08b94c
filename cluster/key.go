package cluster

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// empty stands for an empty part of a key. It is no hex.
const empty = "_"

// encode gives a key's name on the wire.
func encode(key string) (string, error) {
	if key == "" || len(key) > MaxKey {
		return "", fmt.Errorf("cluster: a key has 1 to %d bytes, not %d", MaxKey, len(key))
	}
	return encodeParts(strings.Split(key, "/")), nil
}

func encodeParts(parts []string) string {
	var b strings.Builder
	for i, p := range parts {
		if i > 0 {
			b.WriteByte('.')
		}
		if p == "" {
			b.WriteString(empty)
		}
		b.WriteString(hex.EncodeToString([]byte(p)))
	}
	return b.String()
}

// decode is encode's inverse; it takes nothing that encode does not give.
func decode(name string) (string, error) {
	if len(name) > 3*MaxKey { // two digits a byte, and at most two more for a slash and an empty part
		return "", fmt.Errorf("cluster: name of a key has %d bytes", len(name))
	}
	parts := strings.Split(name, ".")
	for i, p := range parts {
		if p == empty {
			parts[i] = ""
			continue
		}
		b, err := hex.DecodeString(p)
		if err != nil || p == "" || strings.ToLower(p) != p || strings.Contains(string(b), "/") {
			return "", fmt.Errorf("cluster: %.100q is no name of a key", name)
		}
		parts[i] = string(b)
	}
	key := strings.Join(parts, "/")
	if key == "" || len(key) > MaxKey {
		return "", fmt.Errorf("cluster: %.100q is no name of a key", name)
	}
	return key, nil
}

// filter selects at least the keys that begin with prefix.
func filter(prefix string) (string, error) {
	if len(prefix) > MaxKey {
		return "", fmt.Errorf("cluster: a prefix has at most %d bytes, not %d", MaxKey, len(prefix))
	}
	at := strings.LastIndexByte(prefix, '/')
	if at < 0 {
		return ">", nil
	}
	return encodeParts(strings.Split(prefix[:at], "/")) + ".>", nil
}
