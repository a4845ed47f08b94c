package lambdaapi

import (
	"net/http"
	"net/url"
	"strings"
)

// A route leads to an operation.
type route struct {
	op      Op
	method  string
	path    string // "/2015-03-31/functions/{FunctionName}"
	query   string // "List=ALL", if the path alone does not tell
	status  int    // of an answer without error, unless the output has its own
	refused bool   // the service has it, and this one does not
}

// Route finds the operation that a request asks for. A slash at the end makes no
// difference, nor do members of the query that no route names. The path is
// taken as it came: an encoded slash stays inside its part. An operation that is
// not offered is refused by its name. The error is one for WriteError.
func Route(r *http.Request) (Op, Vars, error) {
	path := strings.TrimSuffix(r.URL.EscapedPath(), "/")
	known := false
	var found *route
	for i := range routes {
		c := &routes[i]
		if !matches(c.path, path) {
			continue
		}
		known = true
		if c.method == r.Method && asked(r, c.query) && (found == nil || c.query != "") {
			found = c
		}
	}
	switch {
	case found != nil && found.refused:
		return "", nil, InvalidParameterValueException.Errorf("%s is not supported here.", found.op)
	case found != nil:
		if vars, ok := read(found.path, path); ok {
			return found.op, vars, nil
		}
	case known:
		return "", nil, MethodNotAllowedException.Errorf("Method %s is not allowed here.", cut(r.Method))
	}
	return "", nil, UnknownOperationException.Errorf("No operation has this path: %s", cut(path))
}

// asked tells whether the request's query has what a route wants: name=value.
func asked(r *http.Request, want string) bool {
	name, value, _ := strings.Cut(want, "=")
	return want == "" || r.URL.Query().Get(name) == value
}

// matches compares a path, encoded, with a pattern of as many parts.
func matches(pattern, path string) bool {
	for pattern != "" || path != "" {
		var want, got string
		var ok1, ok2 bool
		want, pattern, ok1 = part(pattern)
		got, path, ok2 = part(path)
		if !ok1 || !ok2 || got == "" || want != got && want[0] != '{' {
			return false
		}
	}
	return true
}

// read decodes the parts of a path that a pattern names; it must match.
func read(pattern, path string) (Vars, bool) {
	vars := Vars{}
	for pattern != "" {
		var want, got string
		want, pattern, _ = part(pattern)
		got, path, _ = part(path)
		if name, ok := strings.CutPrefix(want, "{"); ok {
			value, err := url.PathUnescape(got)
			if err != nil {
				return nil, false
			}
			vars[strings.TrimSuffix(name, "}")] = value
		}
	}
	return vars, true
}

// part splits "/a/b" into "a" and "/b".
func part(path string) (first, rest string, ok bool) {
	path, ok = strings.CutPrefix(path, "/")
	i := strings.IndexByte(path, '/')
	if i < 0 {
		return path, "", ok
	}
	return path[:i], path[i:], ok
}
