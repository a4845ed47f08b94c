package tidy

import (
	"bytes"
	"go/ast"
	"go/token"
	"regexp"
	"strconv"
	"strings"
)

// proofs wants each test, fuzz target and benchmark that docs/proofs.md names as package/TestName to be in a test file of that package, and
// that the page names some. A subtest, package/TestName/subtest, counts as there if one of the package's test files has its name as a string.
func proofs(r *repo) {
	const page = "docs/proofs.md"
	name := regexp.MustCompile(`([a-z][a-z0-9/-]*)/((?:Test|Benchmark|Fuzz)\w*)(?:/(\w+))?`)
	there, found := r.testNames(), false
	for _, t := range r.texts {
		number := 0
		for line := range bytes.Lines(t.data) {
			if number++; t.path != page {
				break
			}
			for _, m := range name.FindAllStringSubmatch(string(line), -1) {
				found = true
				switch of := there[m[1]]; {
				case !of[m[2]]:
					r.report(page, number, "%s has no %s", m[1], m[2])
				case m[3] != "" && !of[strconv.Quote(m[3])]:
					r.report(page, number, "%s has no subtest %s", m[1], m[3])
				}
			}
		}
	}
	if !found {
		r.report(page, 0, "names no test: want package/TestName")
	}
}

// testNames gives the functions of each package's test files, and, quoted, the strings in them.
func (r *repo) testNames() map[string]map[string]bool {
	all := map[string]map[string]bool{}
	for _, p := range r.packages {
		of := map[string]bool{}
		for _, f := range p.tests() {
			for _, d := range f.syntax.Decls {
				if d, ok := d.(*ast.FuncDecl); ok && d.Recv == nil {
					of[d.Name.Name] = true
				}
			}
			ast.Inspect(f.syntax, func(n ast.Node) bool {
				if s, ok := n.(*ast.BasicLit); ok && s.Kind == token.STRING {
					of[strconv.Quote(strings.Trim(s.Value, "\"`"))] = true
				}
				return true
			})
		}
		all[p.dir] = of
	}
	return all
}
