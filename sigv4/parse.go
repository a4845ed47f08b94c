package sigv4

import (
	"encoding/hex"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// A signature is what a request says of its own.
type signature struct {
	keyID, day, region, service string
	at                          time.Time
	expires                     time.Duration // of a presigned URL; else 0
	headers                     []string
	mac                         []byte
	token                       string
	query                       url.Values // without the signature itself
}

// parse reads a request's signature from its Authorization or, if presigned, from its
// query; of both there may be one.
func parse(r *http.Request, presigned bool) (*signature, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, incomplete("The query string is malformed.")
	}
	inQuery := presigned && query.Has("X-Amz-Algorithm")
	authorization := r.Header.Values("Authorization")
	switch {
	case len(authorization) > 1 || len(authorization) == 1 && inQuery:
		return nil, incomplete("Only one authorization is allowed: by one header or by the query.")
	case inQuery:
		return parseQuery(query)
	case len(authorization) == 0 || authorization[0] == "":
		return nil, &Error{code: "MissingAuthenticationTokenException", message: "Missing Authentication Token"}
	}
	return parseHeader(r, authorization[0], query)
}

func parseHeader(r *http.Request, authorization string, query url.Values) (*signature, error) {
	rest, ok := strings.CutPrefix(authorization, algorithm+" ")
	if !ok {
		return nil, incomplete("Authorization header requires the algorithm '%s'.", algorithm)
	}
	parts := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, ok := strings.Cut(strings.Trim(part, " \t"), "=")
		if _, twice := parts[name]; !ok || twice {
			return nil, incomplete("Authorization header is malformed: it needs each of Credential, SignedHeaders and Signature once.")
		}
		parts[name] = value
	}
	var missing []string
	for _, name := range []string{"Credential", "Signature", "SignedHeaders"} {
		if parts[name] == "" {
			missing = append(missing, "Authorization header requires '"+name+"' parameter.")
		}
	}
	dates := r.Header.Values("X-Amz-Date")
	if len(dates) != 1 {
		missing = append(missing, "Authorization header requires existence of one 'X-Amz-Date' header.")
	}
	if missing != nil {
		return nil, incomplete("%s", strings.Join(missing, " "))
	}
	s := &signature{query: query, token: r.Header.Get("X-Amz-Security-Token")}
	return s, s.fill(parts["Credential"], dates[0], parts["SignedHeaders"], parts["Signature"])
}

func parseQuery(query url.Values) (*signature, error) {
	s := &signature{query: query, token: query.Get("X-Amz-Security-Token")}
	for _, name := range []string{"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Signature"} {
		if len(query[name]) != 1 || query.Get(name) == "" {
			return nil, incomplete("AWS query-string parameters must include '%s' once.", name)
		}
	}
	if query.Get("X-Amz-Algorithm") != algorithm {
		return nil, incomplete("AWS query-string parameter 'X-Amz-Algorithm' must be '%s'.", algorithm)
	}
	seconds, err := strconv.Atoi(query.Get("X-Amz-Expires"))
	if err != nil || seconds < 1 || seconds > int(longest/time.Second) {
		return nil, incomplete("X-Amz-Expires must be between 1 and %d seconds.", int(longest/time.Second))
	}
	s.expires = time.Duration(seconds) * time.Second
	mac := query.Get("X-Amz-Signature")
	delete(query, "X-Amz-Signature")
	return s, s.fill(query.Get("X-Amz-Credential"), query.Get("X-Amz-Date"), query.Get("X-Amz-SignedHeaders"), mac)
}

// fill reads the parts that both forms have.
func (s *signature) fill(credential, date, headers, mac string) error {
	scope := strings.Split(credential, "/")
	if len(scope) != 5 || scope[0] == "" {
		return incomplete("Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term.")
	}
	if scope[4] != terminator {
		return invalid("Credential should be scoped with a valid terminator: '%s'. ", terminator)
	}
	s.keyID, s.day, s.region, s.service = scope[0], scope[1], scope[2], scope[3]
	if _, err := time.Parse("20060102", s.day); err != nil {
		return incomplete("Credential must have a date of the form YYYYMMDD.")
	}
	var err error
	if s.at, err = time.Parse(timeForm, date); err != nil || s.at.Format(timeForm) != date {
		return incomplete("Date must be in ISO-8601 'basic format'.")
	}
	if s.mac, err = hex.DecodeString(mac); err != nil || len(s.mac) != 32 {
		return invalid("The request signature must be 64 hexadecimal digits.")
	}
	s.headers = strings.Split(headers, ";")
	return nil
}
