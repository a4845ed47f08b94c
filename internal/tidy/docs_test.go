package tidy

import (
	"go/ast"
	"strings"
)

// documented wants a comment on every exported function, type and method, and on every exported constant and variable or on its group.
// A method counts if its receiver's type is exported. Fields and methods of interfaces belong to their type's comment.
func documented(r *repo) {
	for _, p := range r.packages {
		for _, f := range p.production() {
			for _, d := range f.syntax.Decls {
				switch d := d.(type) {
				case *ast.FuncDecl:
					if d.Name.IsExported() && ast.IsExported(receiver(d)) && blank(d.Doc) {
						r.reportAt(f, d.Pos(), "%s has no doc comment", d.Name.Name)
					}
				case *ast.GenDecl:
					group(r, f, d)
				}
			}
		}
	}
}

// group judges a declaration of types, constants or variables. Within a group a comment also serves the names right below that it mentions.
func group(r *repo, f *file, d *ast.GenDecl) {
	var above *ast.CommentGroup
	for _, s := range d.Specs {
		switch s := s.(type) {
		case *ast.TypeSpec:
			if s.Name.IsExported() && blank(s.Doc) && (blank(d.Doc) || len(d.Specs) > 1) {
				r.reportAt(f, s.Pos(), "%s has no doc comment", s.Name.Name)
			}
		case *ast.ValueSpec:
			if !blank(s.Doc) {
				above = s.Doc
			}
			for _, n := range s.Names {
				served := !blank(s.Doc) || !blank(s.Comment) || !blank(d.Doc) || !blank(above) && strings.Contains(above.Text(), n.Name)
				if n.IsExported() && !served {
					r.reportAt(f, n.Pos(), "%s has no doc comment, nor has its group", n.Name)
				}
			}
		}
	}
}

// receiver names the type of a method's receiver; for a plain function something exported.
func receiver(d *ast.FuncDecl) string {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return "Plain"
	}
	t := d.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.ParenExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

func blank(c *ast.CommentGroup) bool { return c == nil || strings.TrimSpace(c.Text()) == "" }

// packageComments wants one in every package; in folders of tests alone, on a test file.
func packageComments(r *repo) {
	for _, p := range r.packages {
		has, any := false, false
		for _, f := range p.files {
			if !f.test {
				any = true
			}
		}
		for _, f := range p.files {
			has = has || f.test != any && !blank(f.syntax.Doc)
		}
		if !has {
			r.report(p.files[0].path, 0, "%s has no package comment", p.name())
		}
	}
}
