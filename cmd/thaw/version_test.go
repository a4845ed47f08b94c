package main

import (
	"bytes"
	"runtime/debug"
	"strings"
	"testing"
)

// The version is one line, whatever go build knew, and both ways give the same.
func TestVersion(t *testing.T) {
	for want, info := range map[string]*debug.BuildInfo{
		"thaw (unknown version)":  nil,
		"thaw v1.2.3 go1.26":      {GoVersion: "go1.26", Main: debug.Module{Version: "v1.2.3"}},
		"thaw (devel) go1.26":     {GoVersion: "go1.26"},
		"thaw (devel) abc go1.26": {GoVersion: "go1.26", Main: debug.Module{Version: "(devel)"}, Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}}},
	} {
		if got := versionLine(info); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	var verb, flag, stderr bytes.Buffer
	a := run(t.Context(), program{}, []string{"version"}, &verb, &stderr)
	b := run(t.Context(), program{}, []string{"--version"}, &flag, &stderr)
	if a != 0 || b != 0 || verb.String() != flag.String() || strings.Count(verb.String(), "\n") != 1 || !strings.HasPrefix(verb.String(), "thaw ") || stderr.Len() > 0 {
		t.Errorf("%d %q, %d %q, %q", a, verb.String(), b, flag.String(), stderr.String())
	}
}
