package tidy

import (
	"go/ast"
	"regexp"
	"slices"
	"strings"
)

// noMocks refuses generated mocks: fakes are written by hand.
func noMocks(r *repo) {
	for _, p := range r.packages {
		for _, f := range p.files {
			if f.generated && regexp.MustCompile(`(?i)mock|counterfeiter`).MatchString(f.syntax.Comments[0].Text()) {
				r.report(f.path, 0, "generated mock: write a small fake with function fields")
			}
		}
	}
}

// noSleep refuses time.Sleep in tests, except inside a call of synctest, where time is not real.
func noSleep(r *repo) {
	r.inTests(func(f *file, call *ast.CallExpr, within []ast.Node) {
		fake := slices.ContainsFunc(within, func(n ast.Node) bool {
			outer, ok := n.(*ast.CallExpr)
			return ok && strings.HasPrefix(callee(outer), "synctest.")
		})
		if callee(call) == "time.Sleep" && !fake {
			r.reportAt(f, call.Pos(), "time.Sleep in a test: wait for the event, or use synctest")
		}
	})
}

// noSilentSkip wants a reason with every skip. It takes every call of a method SkipNow, and of Skip without arguments on a variable named
// as tests name theirs, for a test's.
func noSilentSkip(r *repo) {
	r.inTests(func(f *file, call *ast.CallExpr, _ []ast.Node) {
		of, method, _ := strings.Cut(callee(call), ".")
		if !slices.Contains([]string{"t", "b", "f", "tb"}, of) {
			return
		}
		if method == "SkipNow" || method == "Skip" && len(call.Args) == 0 {
			r.reportAt(f, call.Pos(), "%s.%s says no reason: skip with a message", of, method)
		}
	})
}

// inTests shows visit every call in test files, with the nodes around it, outermost first.
func (r *repo) inTests(visit func(f *file, call *ast.CallExpr, within []ast.Node)) {
	for _, p := range r.packages {
		for _, f := range p.tests() {
			var stack []ast.Node
			ast.Inspect(f.syntax, func(n ast.Node) bool {
				if n == nil {
					stack = stack[:len(stack)-1]
					return true
				}
				if call, ok := n.(*ast.CallExpr); ok {
					visit(f, call, stack)
				}
				stack = append(stack, n)
				return true
			})
		}
	}
}

// fuzzSeeds wants seeds for every fuzz target: a call of Add on its *testing.F, in the target or in a function of the package that it
// passes the F to, or files in testdata/fuzz. That a seed loop finds its files is for the target to check when it runs.
func fuzzSeeds(r *repo) {
	for _, p := range r.packages {
		funcs := map[string]*ast.FuncDecl{}
		for _, f := range p.tests() {
			for _, d := range f.syntax.Decls {
				if d, ok := d.(*ast.FuncDecl); ok && d.Recv == nil {
					funcs[d.Name.Name] = d
				}
			}
		}
		for _, f := range p.tests() {
			for _, d := range f.syntax.Decls {
				d, ok := d.(*ast.FuncDecl)
				if !ok || d.Recv != nil || !strings.HasPrefix(d.Name.Name, "Fuzz") || len(fuzzers(d)) == 0 {
					continue
				}
				folder := strings.TrimPrefix(p.dir+"/testdata/fuzz/"+d.Name.Name, "/")
				if !r.seeds[folder] && !seeds(funcs, d, nil) {
					r.reportAt(f, d.Pos(), "%s has no seeds: call f.Add or fill %s", d.Name.Name, folder)
				}
			}
		}
	}
}

// fuzzers names the parameters of a function that are *testing.F or testing.TB.
func fuzzers(d *ast.FuncDecl) []string {
	var names []string
	for _, p := range d.Type.Params.List {
		t := p.Type
		if star, ok := t.(*ast.StarExpr); ok {
			t = star.X
		}
		if s, ok := t.(*ast.SelectorExpr); ok && (s.Sel.Name == "F" || s.Sel.Name == "TB") {
			for _, n := range p.Names {
				names = append(names, n.Name)
			}
		}
	}
	return names
}

// seeds tells whether the function adds seeds, itself or through others; within are the callers, against recursion.
func seeds(funcs map[string]*ast.FuncDecl, d *ast.FuncDecl, within []*ast.FuncDecl) bool {
	if d == nil || d.Body == nil || slices.Contains(within, d) {
		return false
	}
	found, own := false, fuzzers(d)
	ast.Inspect(d.Body, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || found {
			return !found
		}
		name := callee(call)
		for _, f := range own {
			found = found || name == f+".Add"
			for _, arg := range call.Args {
				if id, ok := arg.(*ast.Ident); ok && id.Name == f {
					found = found || seeds(funcs, funcs[name], append(within, d))
				}
			}
		}
		return !found
	})
	return found
}
