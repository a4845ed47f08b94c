package tidy

import (
	"go/ast"
	"go/token"
	"go/types"
	"path"
	"slices"
	"strings"
)

// noInit refuses func init, in tests too: wiring is done by plain calls.
func noInit(r *repo) {
	for _, p := range r.packages {
		for _, f := range slices.Concat(p.production(), p.tests()) {
			for _, d := range f.syntax.Decls {
				if d, ok := d.(*ast.FuncDecl); ok && d.Name.Name == "init" && d.Recv == nil {
					r.reportAt(f, d.Pos(), "func init: call it from main or a constructor")
				}
			}
		}
	}
}

// noState refuses package-level variables of production code that could change. Allowed are, if nothing in the package assigns to them
// or takes their address:
//
//   - errors (errors.New, fmt.Errorf, or any value if the name starts with Err or err), and blank ones;
//   - files embedded at build time;
//   - results of the constructors in immutable;
//   - unexported values that are only read: strings, numbers, and tables (arrays, slices, maps, structs) that are indexed, ranged over,
//     compared, measured, or passed to one of the readers.
//
// Nested slices and maps of a table are taken on trust below the first level.
func noState(r *repo) {
	for _, p := range r.packages {
		u := users{repo: r, info: resolve(r.fset, p), vars: map[types.Object]bool{}}
		for _, f := range p.production() {
			for _, d := range f.syntax.Decls {
				if d, ok := d.(*ast.GenDecl); ok && d.Tok == token.VAR {
					u.declare(f, d)
				}
			}
		}
		for _, f := range p.production() {
			u.check(f)
		}
	}
}

// resolve finds what each identifier of a package means. Imported packages are left empty, so the types of what comes from them are
// unknown; errors from that are expected.
func resolve(fset *token.FileSet, p *pkg) *types.Info {
	info := &types.Info{Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{}, Types: map[ast.Expr]types.TypeAndValue{}}
	config := types.Config{Importer: empty{}, Error: func(error) {}, DisableUnusedImportCheck: true}
	var syntax []*ast.File
	for _, f := range p.production() {
		syntax = append(syntax, f.syntax)
	}
	_, _ = config.Check(p.dir, fset, syntax, info)
	return info
}

// empty imports packages without their contents.
type empty struct{}

func (empty) Import(name string) (*types.Package, error) {
	p := types.NewPackage(name, path.Base(name))
	p.MarkComplete()
	return p, nil
}

// immutable lists constructors whose results nothing changes.
func immutable() []string {
	return []string{
		"errors.New", "fmt.Errorf", "regexp.MustCompile", "template.Must", "strings.NewReplacer", "crc32.MakeTable", "crc64.MakeTable",
		"strings.Join", "strings.Repeat", "fmt.Sprint", "fmt.Sprintf", "base32.NewEncoding", "base64.NewEncoding", "netip.MustParseAddr", "netip.MustParsePrefix", "reflect.TypeFor",
	}
}

// readers lists functions, and methods of any type, that only read what they are given.
func readers() []string {
	return []string{
		"slices.Contains", "slices.ContainsFunc", "slices.Index", "slices.IndexFunc", "slices.BinarySearch", "slices.Equal", "slices.Clone",
		"slices.Concat", "slices.Values", "slices.All", "slices.Sorted", "maps.Keys", "maps.Values", "maps.All", "maps.Clone", "bytes.Equal",
		"bytes.HasPrefix", "bytes.HasSuffix", "bytes.Contains", "bytes.Index", "bytes.Compare", "bytes.NewReader", "strings.Join", "hmac.New",
		"hmac.Equal", "subtle.ConstantTimeCompare", "sha256.Sum256", "fmt.Sprint", "fmt.Sprintf", "fmt.Errorf", ".Write", ".WriteAt",
	}
}

// users judges the package-level variables of one package.
type users struct {
	*repo
	info *types.Info
	vars map[types.Object]bool // allowed so far → whatever is done with its value is fine
}

// declare judges a declaration by itself.
func (u users) declare(f *file, d *ast.GenDecl) {
	for _, s := range d.Specs {
		s := s.(*ast.ValueSpec)
		shape := tableShape(s)
		embedded := directive(d.Doc, "//go:embed ") || directive(s.Doc, "//go:embed ")
		for i, n := range s.Names {
			var value ast.Expr
			if i < len(s.Values) {
				value = s.Values[i]
			}
			sentinel := strings.HasPrefix(n.Name, "Err") || strings.HasPrefix(n.Name, "err")
			opaque := embedded || sentinel && value != nil || slices.Contains(immutable(), callee(value))
			o := u.info.Defs[n]
			switch {
			case n.Name == "_":
			case o == nil || !opaque && shape == nil && !readable(o.Type()):
				u.reportAt(f, n.Pos(), "variable %s is state of the package: make it a field, a parameter or a function", n.Name)
			case n.IsExported() && !sentinel:
				u.reportAt(f, n.Pos(), "variable %s can be assigned by others: make it a constant or a function", n.Name)
			default:
				u.vars[o] = opaque || !refers(o.Type()) && (shape == nil || shape.Len != nil)
			}
		}
	}
}

// tableShape returns the array type that a declaration spells out, for arrays whose length or element comes from another package.
func tableShape(s *ast.ValueSpec) *ast.ArrayType {
	t := s.Type
	if t == nil && len(s.Values) > 0 {
		if c, ok := s.Values[0].(*ast.CompositeLit); ok {
			t = c.Type
		}
	}
	shape, _ := t.(*ast.ArrayType)
	return shape
}

func directive(c *ast.CommentGroup, prefix string) bool {
	return c != nil && slices.ContainsFunc(c.List, func(l *ast.Comment) bool { return strings.HasPrefix(l.Text, prefix) })
}

// callee names the function that an expression calls: "package.Function", ".Method" or "function". Chained calls go by their first.
func callee(e ast.Expr) string {
	c, ok := e.(*ast.CallExpr)
	if !ok {
		return ""
	}
	switch f := c.Fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.IndexExpr:
		return callee(&ast.CallExpr{Fun: f.X})
	case *ast.SelectorExpr:
		if x, ok := f.X.(*ast.Ident); ok {
			return x.Name + "." + f.Sel.Name
		}
		if inner := callee(f.X); inner != "" {
			return inner
		}
	}
	return ""
}

// readable tells whether values of the type can be looked at without a call: no pointers, channels, functions, interfaces, locks.
func readable(t types.Type) bool {
	switch t := t.Underlying().(type) {
	case *types.Basic:
		return t.Kind() != types.Invalid
	case *types.Array:
		return true
	case *types.Slice, *types.Map:
		return true
	case *types.Struct:
		for i := range t.NumFields() {
			if !readable(t.Field(i).Type()) {
				return false
			}
		}
		return true
	}
	return false
}

// refers tells whether a copy of such a value shares its contents.
func refers(t types.Type) bool {
	switch t.Underlying().(type) {
	case *types.Slice, *types.Map:
		return true
	}
	return false
}

// check looks at every use of the variables in a file.
func (u users) check(f *file) {
	var stack []ast.Node
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		if n == nil {
			stack = stack[:len(stack)-1]
			return true
		}
		stack = append(stack, n)
		if id, ok := n.(*ast.Ident); ok {
			if opaque, ours := u.vars[u.info.Uses[id]]; ours {
				if what := misuse(stack, opaque); what != "" {
					u.reportAt(f, id.Pos(), "package-level variable %s is %s", id.Name, what)
				}
			}
		}
		return true
	})
}

// misuse says what the use at the end of the stack does to a variable, "" if it only reads. If opaque is set, what happens to copies of
// the value does not matter.
func misuse(stack []ast.Node, opaque bool) string {
	part := stack[len(stack)-1] // the variable, or the element or slice of it that is used
	for i := len(stack) - 2; i >= 0; i-- {
		switch outer := stack[i].(type) {
		case *ast.ParenExpr, *ast.StarExpr:
			part = outer
		case *ast.SelectorExpr:
			if outer.X != part {
				return "" // a field of that name
			}
			part = outer
		case *ast.IndexExpr:
			if outer.Index == part {
				return ""
			}
			part, opaque = outer, true
		case *ast.SliceExpr:
			if outer.X != part {
				return ""
			}
			part, opaque = outer, false
		default:
			return useIn(outer, part, opaque)
		}
	}
	return ""
}

// useIn judges the node around a variable, its element or its slice.
func useIn(outer, part ast.Node, opaque bool) string {
	const shared = "handed out, which allows to change it: copy it or only read it here"
	switch outer := outer.(type) {
	case *ast.AssignStmt:
		if slices.ContainsFunc(outer.Lhs, func(e ast.Expr) bool { return e == part }) {
			return "assigned to"
		}
	case *ast.IncDecStmt:
		return "assigned to"
	case *ast.RangeStmt:
		if outer.X != part {
			return "assigned to"
		}
		return ""
	case *ast.UnaryExpr:
		if outer.Op == token.AND {
			return "pointed to"
		}
		return ""
	case *ast.BinaryExpr, *ast.SwitchStmt, *ast.CaseClause, *ast.IfStmt, *ast.TypeAssertExpr:
		return ""
	case *ast.CallExpr:
		return useInCall(outer, part, opaque, shared)
	}
	if !opaque {
		return shared
	}
	return ""
}

func useInCall(call *ast.CallExpr, part ast.Node, opaque bool, shared string) string {
	name := callee(call)
	first := len(call.Args) > 0 && call.Args[0] == part
	switch {
	case (name == "clear" || name == "delete" || name == "copy" || name == "append") && first:
		return "changed by " + name
	case opaque || call.Fun == part:
		return ""
	case slices.Contains([]string{"len", "cap", "copy", "append", "string", "min", "max"}, name), slices.Contains(readers(), name):
		return ""
	case slices.ContainsFunc(readers(), func(r string) bool { return r[0] == '.' && strings.HasSuffix(name, r) }):
		return ""
	}
	return shared
}
