package tidy

import (
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
)

// The limits, not the aims: a page near one of these is already due for a second look.
const (
	maxFileLines     = 700
	maxFunctionLines = 70
	maxParameters    = 5   // more belong in a struct
	maxExported      = 25  // a larger package has two reasons to change
	maxMethods       = 3   // more powers are separate interfaces
	minTestShare     = 0.6 // lines of tests for a line of production code
)

func fileLines(r *repo) {
	for _, p := range r.packages {
		for _, f := range p.files {
			if f.lines > maxFileLines && !f.generated {
				r.report(f.path, 0, "%d lines, limit %d", f.lines, maxFileLines)
			}
		}
	}
}

// functions limits the length of declared functions, tests included, and the parameters of all; a context counts, a receiver does not.
func functions(r *repo) {
	for _, p := range r.packages {
		for _, f := range slices.Concat(p.production(), p.tests()) {
			ast.Inspect(f.syntax, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					if lines := r.line(n.End()) - r.line(n.Pos()) + 1; lines > maxFunctionLines {
						r.reportAt(f, n.Pos(), "func %s has %d lines, limit %d", n.Name.Name, lines, maxFunctionLines)
					}
				case *ast.FuncType:
					if count := n.Params.NumFields(); count > maxParameters {
						r.reportAt(f, n.Params.Pos(), "%d parameters, limit %d", count, maxParameters)
					}
				}
				return true
			})
		}
	}
}

func (r *repo) line(pos token.Pos) int { return r.fset.Position(pos).Line }

// exportedNames limits what a package offers: its exported constants, variables, types and functions, without methods.
// Commands offer nothing; the wire shapes of lambdaapi are somebody else's list, and invokewire is but the words of one.
func exportedNames(r *repo) {
	for _, p := range r.packages {
		if p.under("cmd") || p.under("lambdaapi") || p.under("invokewire") {
			continue
		}
		var names []string
		for _, f := range p.production() {
			for _, d := range f.syntax.Decls {
				names = append(names, exportedBy(d)...)
			}
		}
		if len(names) > maxExported {
			slices.Sort(names)
			r.report(p.dir, 0, "%d exported names, limit %d: %s", len(names), maxExported, strings.Join(names, " "))
		}
	}
}

// exportedBy lists the exported names that a declaration puts into its package.
func exportedBy(d ast.Decl) []string {
	var names []string
	add := func(n *ast.Ident) {
		if n.IsExported() {
			names = append(names, n.Name)
		}
	}
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil {
			add(d.Name)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				add(s.Name)
			case *ast.ValueSpec:
				for _, n := range s.Names {
					add(n)
				}
			}
		}
	}
	return names
}

// interfaceMethods limits named interfaces. An embedded interface of the same package counts with its methods, another one as one.
func interfaceMethods(r *repo) {
	for _, p := range r.packages {
		declared := map[string]*ast.InterfaceType{}
		for _, f := range p.production() {
			for _, t := range typesOf(f) {
				if i, ok := t.Type.(*ast.InterfaceType); ok {
					declared[t.Name.Name] = i
				}
			}
		}
		for _, f := range p.production() {
			for _, t := range typesOf(f) {
				if count := methods(declared, t.Name.Name, nil); count > maxMethods {
					r.reportAt(f, t.Pos(), "interface %s has %d methods, limit %d", t.Name.Name, count, maxMethods)
				}
			}
		}
	}
}

// methods counts those of the interface called name; within are the ones being counted, against cycles.
func methods(declared map[string]*ast.InterfaceType, name string, within []string) int {
	i := declared[name]
	if i == nil || slices.Contains(within, name) {
		return 0
	}
	count := 0
	for _, m := range i.Methods.List {
		switch t := m.Type.(type) {
		case *ast.FuncType:
			count += len(m.Names)
		case *ast.Ident:
			if declared[t.Name] != nil {
				count += methods(declared, t.Name, append(within, name))
			} else {
				count++
			}
		case *ast.SelectorExpr:
			count++
		}
	}
	return count
}

func typesOf(f *file) []*ast.TypeSpec {
	var types []*ast.TypeSpec
	for _, d := range f.syntax.Decls {
		if g, ok := d.(*ast.GenDecl); ok {
			for _, s := range g.Specs {
				if t, ok := s.(*ast.TypeSpec); ok {
					types = append(types, t)
				}
			}
		}
	}
	return types
}

// testShare wants lines of tests for a package's lines. All lines of a file count. A package named for tests is test code: its lines
// count for the folder it lies in. Below cmd, scripts in testdata (.txt, .txtar) count as tests. bench is exempt, being
// experiments; so are folders without production code.
func testShare(r *repo) {
	tests, lines := map[string]int{}, map[string]int{}
	for _, p := range r.packages {
		for _, f := range p.tests() {
			tests[p.dir] += f.lines
		}
		for _, f := range p.production() {
			if forTests(p.dir) {
				tests[path.Dir(p.dir)] += f.lines
			} else {
				lines[p.dir] += f.lines
			}
		}
		if p.under("cmd") {
			tests[p.dir] += r.scripts[p.dir]
		}
	}
	for _, p := range r.packages {
		if p.under("bench") || lines[p.dir] == 0 {
			continue
		}
		if share := float64(tests[p.dir]) / float64(lines[p.dir]); share < minTestShare {
			r.report(p.dir, 0, "%d lines of tests for %d lines: %.2f, want %.1f", tests[p.dir], lines[p.dir], share, minTestShare)
		}
	}
}

// forTests tells whether a package's name begins or ends with "test": it helps tests and is no part of the program.
func forTests(dir string) bool {
	name := path.Base(dir)
	return strings.HasPrefix(name, "test") || strings.HasSuffix(name, "test")
}
