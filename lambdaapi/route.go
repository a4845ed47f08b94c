package lambdaapi

import (
	"net/http"
	"net/url"
	"strings"
)

// A route leads to an operation.
type route struct {
	op     Op
	method string
	path   string // "/2015-03-31/functions/{FunctionName}"
	query  string // "List=ALL", if the path alone does not tell
	status int    // of an answer without error, unless the output has its own
}

// Route finds the operation that a request asks for. A slash at the end makes no
// difference, nor do members of the query that no route names. The path is
// taken as it came: an encoded slash stays inside its part. The error is one
// for WriteError.
func Route(r *http.Request) (Op, Vars, error) {
	path := strings.TrimSuffix(r.URL.EscapedPath(), "/")
	known := false
	var found *route
	var vars Vars
	for i := range routes {
		v, ok := match(routes[i].path, path)
		if !ok {
			continue
		}
		known = true
		if routes[i].method != r.Method || !asked(r, routes[i].query) || found != nil && routes[i].query == "" {
			continue
		}
		found, vars = &routes[i], v
	}
	switch {
	case found != nil:
		return found.op, vars, nil
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

// match compares a path, encoded, with a pattern of as many parts.
func match(pattern, path string) (Vars, bool) {
	vars := Vars{}
	for pattern != "" || path != "" {
		var want, got string
		var ok1, ok2 bool
		want, pattern, ok1 = part(pattern)
		got, path, ok2 = part(path)
		if !ok1 || !ok2 {
			return nil, false
		}
		name, isVar := strings.CutPrefix(want, "{")
		if !isVar {
			if want != got {
				return nil, false
			}
			continue
		}
		value, err := url.PathUnescape(got)
		if err != nil || value == "" {
			return nil, false
		}
		vars[strings.TrimSuffix(name, "}")] = value
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
