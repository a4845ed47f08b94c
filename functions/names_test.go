package functions

import (
	"errors"
	"strings"
	"testing"
)

func TestParseName(t *testing.T) {
	for in, want := range map[string]Name{
		"f":                       {Function: "f"},
		"f:live":                  {Function: "f", Qualifier: "live"},
		"f:$LATEST":               {Function: "f", Qualifier: "$LATEST"},
		"my-f_1:12":               {Function: "my-f_1", Qualifier: "12"},
		"123456789012:function:f": {Account: "123456789012", Function: "f"},
		"123456789012:f:q":        {Account: "123456789012", Function: "f", Qualifier: "q"},
		"function:f":              {Function: "f"},
		"arn:aws:lambda:us-east-1:123456789012:function:f":         {Region: "us-east-1", Account: "123456789012", Function: "f"},
		"arn:aws:lambda:us-east-1:123456789012:function:f:$LATEST": {Region: "us-east-1", Account: "123456789012", Function: "f", Qualifier: "$LATEST"},
		"arn:aws-us-gov:lambda:us-gov-west-1:123456789012:function:f:v": {
			Region: "us-gov-west-1", Account: "123456789012", Function: "f", Qualifier: "v"},
	} {
		got, err := ParseName(in)
		if err != nil || got != want {
			t.Errorf("ParseName(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
}

func TestParseNameRefuses(t *testing.T) {
	for _, in := range []string{"", "a b", "f:", "f:a:b", "f:$NEXT", "f/g", "arn:aws:s3:::bucket/x", "f\n", "ф", strings.Repeat("f", 171), "f?"} {
		_, err := ParseName(in)
		var e *Error
		if !errors.As(err, &e) || e.Kind != "ValidationException" || !strings.HasPrefix(e.Text, "1 validation error detected: Value '") {
			t.Errorf("ParseName(%q): %v", in, err)
		}
	}
}

func TestParseNewName(t *testing.T) {
	arn := "arn:aws:lambda:us-east-1:123456789012:function:"
	for in, kind := range map[string]string{
		"f":                            "",
		strings.Repeat("f", 64):        "",
		arn + "f":                      "",
		"123456789012:function:f":      "",
		strings.Repeat("f", 65):        "InvalidParameterValueException",
		"a.b":                          "InvalidParameterValueException",
		"a b":                          "ValidationException",
		"":                             "ValidationException",
		arn + strings.Repeat("f", 65):  "ValidationException",
		arn + strings.Repeat("f", 140): "ValidationException",
	} {
		_, err := ParseNewName(in)
		var e *Error
		if errors.As(err, &e); (kind == "") != (err == nil) || kind != "" && e.Kind != kind {
			t.Errorf("ParseNewName(%q): %v, want %s", in, err, kind)
		}
	}
	_, err := ParseNewName("a b" + strings.Repeat("c", 200))
	if err == nil || !strings.Contains(err.Error(), "2 validation errors detected: ") {
		t.Errorf("two complaints: %v", err)
	}
}

func TestNameIn(t *testing.T) {
	for _, c := range []struct{ name, qualifier, want, kind string }{
		{"f", "", "arn:aws:lambda:us-east-1:000000000001:function:f", ""},
		{"f", "live", "arn:aws:lambda:us-east-1:000000000001:function:f:live", ""},
		{"f:live", "live", "arn:aws:lambda:us-east-1:000000000001:function:f:live", ""},
		{"f:live", "1", "", "InvalidParameterValueException"},
		{"f", "a b", "", "ValidationException"},
		{"f", strings.Repeat("q", 129), "", "ValidationException"},
		{"000000000002:f", "", "", "AccessDeniedException"},
		{"arn:aws:lambda:eu-west-1:000000000001:function:f", "", "", "ResourceNotFoundException"},
	} {
		n, err := ParseName(c.name)
		if err != nil {
			t.Fatal(err)
		}
		n, err = n.In("000000000001", "us-east-1", c.qualifier)
		var e *Error
		switch {
		case c.kind == "" && (err != nil || n.ARN("us-east-1") != c.want):
			t.Errorf("%q in: %v, %v", c.name, n.ARN("us-east-1"), err)
		case c.kind != "" && (!errors.As(err, &e) || e.Kind != c.kind):
			t.Errorf("%q with %q: %v, want %s", c.name, c.qualifier, err, c.kind)
		}
	}
}

// What is read as a name and written as an ARN is read as the same again.
func FuzzParseName(f *testing.F) {
	for _, s := range []string{"f", "f:live", "123456789012:function:f:1", "arn:aws:lambda:us-east-1:123456789012:function:f:$LATEST", "arn:aws:lambda:f", "1:2:3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if err != nil {
			return
		}
		if n.Function == "" || len(s) > maxReference {
			t.Fatalf("%q was read as %+v", s, n)
		}
		n.Account, n.Region = "123456789012", "us-east-1"
		again, err := ParseName(n.ARN(""))
		if len(n.ARN("")) <= maxReference && (err != nil || again != n) {
			t.Fatalf("%q: %+v came back as %+v, %v", s, n, again, err)
		}
	})
}
