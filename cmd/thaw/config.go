package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/pelletier/go-toml/v2"
)

// maxConfig bounds a file of flags in bytes.
const maxConfig = 1 << 20

// configFlag is a TOML file of flags. What stands first is for all verbs, a
// verb's own flags stand in the table of its name, a verb's below it in a table
// below; a verb that is run without saying so has none of its own:
//
//	origin = "s3://images"
//	[worker]
//	listen = "10.0.0.6:9012"
//	allow = ["10.1.0.0/16"]
//	[fleet.invite]
//	host = ["b.example"]
//
// The command line goes first, then the environment, then the file. It may be
// for several verbs; a key that is no flag of any is an error.
type configFlag string

// BeforeResolve has kong look into the file.
func (configFlag) BeforeResolve(ctx *kong.Context, at *kong.Path) error {
	path := string(ctx.FlagValue(at.Flag).(configFlag))
	tables, err := readConfig(path)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	all, err := kong.New(&cli{}, kong.Name("thaw")) // ctx may know one verb only
	if err != nil {
		return err
	}
	if err := checkConfig(all.Model.Node, tables, ""); err != nil {
		return fmt.Errorf("--config: %s: %w", path, err)
	}
	ctx.AddResolver(config(tables))
	return nil
}

func readConfig(path string) (map[string]any, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(data) > maxConfig {
		err = fmt.Errorf("%s has more than %d bytes", path, maxConfig)
	}
	if err != nil {
		return nil, err
	}
	tables := map[string]any{}
	if err := toml.Unmarshal(data, &tables); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return tables, nil
}

// checkConfig refuses keys that are no flags of a verb, or of the one that is run
// in its place, and values that are none of a flag.
func checkConfig(n *kong.Node, table map[string]any, prefix string) error {
	for _, key := range slices.Sorted(maps.Keys(table)) {
		child := slices.IndexFunc(n.Children, func(c *kong.Node) bool { return c.Name == key && !c.Hidden })
		if below, ok := table[key].(map[string]any); ok && child >= 0 {
			if err := checkConfig(n.Children[child], below, prefix+key+"."); err != nil {
				return err
			}
			continue
		}
		if key == "config" || !hasFlag(n, key) && (n.DefaultCmd == nil || !hasFlag(n.DefaultCmd, key)) {
			return fmt.Errorf("%s%s: there is no such flag of %s", prefix, key, n.FullPath())
		}
		if _, err := flagValue(table[key]); err != nil {
			return fmt.Errorf("%s%s: %w", prefix, key, err)
		}
	}
	return nil
}

func hasFlag(n *kong.Node, name string) bool {
	return name != "help" && slices.ContainsFunc(n.Flags, func(f *kong.Flag) bool { return f.Name == name })
}

// flagValue puts a value in words, as the command line would have it.
func flagValue(v any) (any, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case bool, int64, float64:
		return fmt.Sprint(v), nil
	case []any:
		list := make([]any, len(v))
		for i, each := range v {
			word, err := flagValue(each)
			if _, ok := word.(string); err != nil || !ok {
				return nil, fmt.Errorf("want a list of strings and numbers")
			}
			list[i] = word
		}
		return list, nil
	}
	return nil, fmt.Errorf("want a string, a number, true, false, or a list of them")
}

// config gives kong the values of a file.
type config map[string]any

// Validate has nothing to do: checkConfig has.
func (config) Validate(*kong.Application) error { return nil }

// Resolve gives a flag's value, or nil if the file or the environment says none.
func (c config) Resolve(_ *kong.Context, at *kong.Path, flag *kong.Flag) (any, error) {
	if slices.ContainsFunc(flag.Envs, func(name string) bool { _, set := os.LookupEnv(name); return set }) {
		return nil, nil
	}
	table := map[string]any(c)
	for _, verb := range verbs(at.Node()) {
		table, _ = table[verb].(map[string]any)
	}
	v, ok := table[flag.Name]
	if !ok {
		return nil, nil
	}
	return flagValue(v)
}

// verbs are the names of the tables that lead to a verb's.
func verbs(n *kong.Node) []string {
	if n == nil || n.Parent == nil {
		return nil
	}
	if n.Parent.DefaultCmd == n {
		return verbs(n.Parent)
	}
	return append(verbs(n.Parent), strings.ToLower(n.Name))
}
