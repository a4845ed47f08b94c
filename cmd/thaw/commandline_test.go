package main

import (
	"bytes"
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
