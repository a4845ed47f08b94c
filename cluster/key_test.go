package cluster

import (
	"path"
	"strings"
	"testing"
)

// matches tells whether a subject is selected, as the server does it.
func matches(selected, name string) bool {
	if selected == ">" {
		return true
	}
	return strings.HasPrefix(name, strings.TrimSuffix(selected, ">"))
}

// FuzzKeys: each key has one name, which is a good subject, and is selected by
// each of its prefixes.
func FuzzKeys(f *testing.F) {
	for _, k := range []string{"a", "owner/000000000000/f", "/", "a//b/", "\x00\xff", "_", "größe", strings.Repeat("/", MaxKey)} {
		f.Add(k, len(k)/2)
	}
	f.Fuzz(func(t *testing.T, key string, cut int) {
		name, err := encode(key)
		if (err == nil) != (key != "" && len(key) <= MaxKey) {
			t.Fatalf("%q: %v", key, err)
		}
		if err != nil {
			return
		}
		if ok, err := path.Match("[0-9a-f_]*[0-9a-f_]", name+"0"); err != nil || !ok || strings.Trim(name, "0123456789abcdef._") != "" || strings.Contains(name, "..") || len(name) > 3*MaxKey {
			t.Fatalf("%q is no subject", name)
		}
		if back, err := decode(name); err != nil || back != key {
			t.Fatalf("%q became %q, %v", key, back, err)
		}
		prefix := key[:min(max(cut, 0), len(key))]
		selected, err := filter(prefix)
		if err != nil || !matches(selected, name) && prefix != key {
			t.Fatalf("%q does not select %q, %v", selected, name, err)
		}
		if !matches(selected, name) {
			t.Fatalf("%q does not select %q", selected, name)
		}
	})
}

// FuzzNames: what is taken for a name is the name of what it gives.
func FuzzNames(f *testing.F) {
	for _, n := range []string{"61", "_", "61._", "6F", "2f", "", "..", "61.", "zz", "_.61", "__", "6"} {
		f.Add(n)
	}
	f.Fuzz(func(t *testing.T, name string) {
		key, err := decode(name)
		if err != nil {
			return
		}
		if again, err := encode(key); err != nil || again != name {
			t.Fatalf("%q gives %q, whose name is %q, %v", name, key, again, err)
		}
	})
}

func TestJournal(t *testing.T) {
	var told []string
	j := &journal{warn: func(line string) { told = append(told, line) }, secrets: []string{"hush", ""}}
	j.Noticef("news of %s", "hush")
	j.Debugf("details")
	j.Tracef("payload")
	j.Warnf("Plaintext passwords detected")
	j.Warnf("Clients that are not using \"TLS Handshake First\" option will fail to connect")
	j.Warnf("a %s\nb", "hush")
	j.Errorf("%s", strings.Repeat("x", 1000))
	j.Fatalf("first %s", "hush")
	j.Fatalf("second")
	if len(told) != 4 || told[0] != "a … b" || len(told[1]) != maxLine || j.fatal() != "first …" {
		t.Errorf("told %q, fatal %q", told, j.fatal())
	}
}
