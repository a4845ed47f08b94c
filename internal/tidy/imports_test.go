package tidy

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// module is the path in front of our packages.
const module = "thaw/"

// all stands for every package.
const all = "*"

// allowed is the architecture: each package with those of ours it may import, space-separated. Arrows point one way. Tests may import
// more. It lists rooms that are not built yet, so that each is built in its place.
func allowed() map[string]string {
	table := map[string]string{
		// create
		"oci":               "",
		"ext4":              "",
		"flatten":           "ext4",
		"chunk":             "",
		"chunk/chunktest":   "chunk",
		"manifest":          "chunk",
		"keys":              "",
		"keys/kms":          "keys",
		"keys/keystest":     "keys",
		"origin":            "chunk manifest",
		"sdkhttp":           "",
		"origin/cloud":      "origin sdkhttp",
		"origin/origintest": "origin chunk chunk/chunktest",
		"catalog":           "origin",
		"convert":           "oci flatten chunk manifest keys origin catalog",
		"verify":            "oci chunk manifest origin", // a second opinion: shares nothing with ext4 and flatten
		// read
		"lru":            "",
		"erasure":        "",
		"latency":        "",
		"text":           "",
		"zone":           "chunk erasure latency",
		"zone/flash":     "lru latency",
		"zone/node":      "chunk zone zone/flash lru latency",
		"cache":          "chunk lru latency",
		"device":         "chunk manifest latency",
		"trace":          "manifest",
		"mount":          "",
		"agent":          "device mount cache manifest chunk latency trace", // jailed: no keys, origin or network code
		"cmd/thaw-agent": "agent",
		"host":           "agent mount sandbox cache manifest",
		"cmd/thaw-shim":  "agent cache host latency sandbox text", // it listens to the agent, and reports its numbers
		"metrics":        "cache host latency zone",
		"top":            "cache host metrics text zone zone/node",
		"snapshotter":    "agent origin manifest",
		// invoke
		"sandbox":          "",
		"cgroups":          "",
		"network":          "",
		"runtimeapi":       "runtimeapi/http1",
		"runtimeapi/http1": "", // net/http makes a program too large that runs in each instance
		"invokewire":       "",
		"quiet":            "",
		"cmd/thaw-init":    "runtimeapi runtimeapi/http1 invokewire quiet",
		"worker":           "agent sandbox cgroups network invokewire cache cluster host latency quiet text",
		"cluster":          "",
		"functions":        "cluster",
		"events":           "cluster",
		"fleet":            "quiet",
		"manager":          "functions cluster events invokewire latency",
		"lambdaapi":        "",
		"lambdaapi/gen":    "", // the generator
		"sigv4":            "",
		"frontend":         "lambdaapi sigv4 functions fleet cluster invokewire events keys latency quiet text",
		"builder":          "convert flatten functions cluster oci keys",
		"registry":         "",
		"console":          "",
	}
	maps.Copy(table, around())
	return table
}

// around is the part of the table around the two paths.
func around() map[string]string {
	return map[string]string{
		"cmd/thaw":              all,
		"bench":                 all,
		"corpus":                "",
		"corpus/settle":         "",
		"corpus/functions/go":   "", // the sample function
		"corpus/functions/over": "",
		"docs/reader":           "", // tests of a reader in another language
		"internal/faults":       "",
		"internal/testbin":      "",
		"internal/testleak":     "",
		"internal/testmount":    "",
		"internal/testoci":      "",
		"internal/testpty":      "",
		"internal/tests3":       "internal/faults internal/testbin",
		"internal/tidy":         "",
	}
}

// importTable holds production files to the table. A package that is not in it has no place yet.
func importTable(r *repo) {
	table := allowed()
	for _, p := range r.packages {
		may, listed := table[p.dir]
		if !listed {
			r.report(p.files[0].path, 0, "package %s is not in the import table (internal/tidy/imports_test.go): give it a place and a reason", p.name())
			continue
		}
		for _, f := range p.production() {
			for _, i := range f.syntax.Imports {
				name, _ := strconv.Unquote(i.Path.Value)
				ours, ok := strings.CutPrefix(name, module)
				switch {
				case !ok:
				case forTests(ours) && !forTests(p.dir):
					r.reportAt(f, i.Pos(), "%s must not import %s, which is for tests", p.name(), ours)
				case may != all && !slices.Contains(strings.Fields(may), ours):
					r.reportAt(f, i.Pos(), "%s must not import %s; it may import: %s", p.name(), ours, orNone(may))
				}
			}
		}
	}
}

func orNone(s string) string {
	if s == "" {
		return "none of ours"
	}
	return s
}
