package main

import (
	"bytes"
	"os"
	"reflect"
	"testing"

	"github.com/alecthomas/kong"
)

// help gives what the root says to a command line that asks for help.
func help(t *testing.T, root any, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	parser, err := kong.New(root, kong.Name("thaw"), kong.Description(description), kong.Writers(&out, &out),
		kong.Exit(func(int) {}), kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = parser.Parse(append(args, "--help")) // what is missing does not matter
	return out.String()
}

// TestCommandLine: a verb alone is described as it is among the others.
func TestCommandLine(t *testing.T) {
	full := reflect.TypeFor[*cli]()
	parser, err := kong.New(&cli{})
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range parser.Model.Children {
		root, g := commandLine([]string{verb.Name, "--tenant", "t"})
		if reflect.TypeOf(root) == full {
			t.Errorf("%s is not found by its name: call the field as the verb", verb.Name)
		}
		if got, want := help(t, root, verb.Name, "--tenant", "acme"), help(t, &cli{}, verb.Name); got != want || want == "" {
			t.Errorf("%s: alone its help is\n%s\namong others\n%s", verb.Name, got, want)
		}
		if g.Tenant != "acme" {
			t.Errorf("%s: the tenant is %q", verb.Name, g.Tenant)
		}
	}
	for _, args := range [][]string{nil, {"--help"}, {"--tenant", "t", "images"}, {"image"}, {"globals"}, {""}} {
		root, g := commandLine(args)
		if c, ok := root.(*cli); !ok || g != &c.Globals {
			t.Errorf("%q: %T", args, root)
		}
	}
}

// TestLoopback: unless told, nothing that thaw up starts is reached from outside.
func TestLoopback(t *testing.T) {
	var root cli
	parser, err := kong.New(&root)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"THAW_LISTEN", "THAW_REGISTRY", "THAW_METRICS"} {
		t.Setenv(name, "") // is put back at the test's end
		_ = os.Unsetenv(name)
	}
	if _, err := parser.Parse([]string{"up"}); err != nil {
		t.Fatal(err)
	}
	up := root.Up
	if up.Listen != "127.0.0.1:9000" || up.Registry != "127.0.0.1:9005" || up.Fleet != "" || up.Metrics != "" {
		t.Errorf("up listens at %q, %q, %q and %q", up.Listen, up.Registry, up.Fleet, up.Metrics)
	}
}
