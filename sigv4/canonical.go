package sigv4

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// path encodes the path as it came once more, and leaves its slashes. Dots and empty
// parts stay: no route has them.
func path(r *http.Request) string {
	p := r.URL.EscapedPath()
	if p == "" {
		return "/"
	}
	return encode(p, true)
}

// queries returns the canonical forms of a query. AWS orders values of one name
// by their encoded form, its SDK for Go before they are encoded: two forms where
// that differs.
func queries(query url.Values) []string {
	encoded := canonicalQuery(query, func(values []string) []string {
		var all []string
		for _, v := range values {
			all = append(all, encode(v, false))
		}
		slices.Sort(all)
		return all
	})
	decoded := canonicalQuery(query, func(values []string) []string {
		var all []string
		for _, v := range slices.Sorted(slices.Values(values)) {
			all = append(all, encode(v, false))
		}
		return all
	})
	if encoded == decoded {
		return []string{encoded}
	}
	return []string{encoded, decoded}
}

func canonicalQuery(query url.Values, order func([]string) []string) string {
	names := map[string]string{}
	for name := range query {
		names[encode(name, false)] = name
	}
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		for _, value := range order(query[names[name]]) {
			pairs = append(pairs, name+"="+value)
		}
	}
	return strings.Join(pairs, "&")
}

// canonicalHeaders writes the signed headers, each with a line end. A header
// that is not there has no value.
func (s *signature) canonicalHeaders(r *http.Request) string {
	var b strings.Builder
	for _, name := range s.headers {
		b.WriteString(name + ":" + header(r, name) + "\n")
	}
	return b.String()
}

// header gives a header's values with their spaces made single. Two of them are not
// among the headers of a request that a server gets.
func header(r *http.Request, name string) string {
	switch {
	case name == "host":
		return r.Host
	case name == "content-length" && r.ContentLength >= 0:
		return strconv.FormatInt(r.ContentLength, 10)
	}
	var values []string
	for _, v := range r.Header.Values(name) {
		values = append(values, strings.Join(strings.Fields(v), " "))
	}
	return strings.Join(values, ",")
}

// encode escapes all but letters, digits and "-._~", and slashes if they stay.
func encode(s string, slashes bool) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~", c) >= 0, c == '/' && slashes:
			b.WriteByte(c)
		default:
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}
