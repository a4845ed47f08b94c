package lambdaapi

import (
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A rule holds what the model wants of a shape's values.
type rule struct {
	min, max   *float64 // of a number's value, or a length
	pattern    string   // as the model has it, for messages
	match, not func() *regexp.Regexp
	enum       []string
	member     string // shape of a list's members
	key, value string // shapes of a map
	sparse     bool   // members may be null
	sensitive  bool   // the value is not repeated in messages
	long       bool   // 64 bits
	double     bool
}

// mostBreaches is how many breaches a message lists.
const mostBreaches = 20

// A checker gathers what breaks the model's rules in an input.
type checker struct {
	count    int
	breaches []string        // the first of them
	gone     map[string]bool // paths of members that must be there and are not
}

// err lists what was found.
func (c *checker) err() error {
	switch {
	case c.count == 0:
		return nil
	case c.count == 1:
		return ValidationException.Errorf("1 validation error detected: %s", c.breaches[0])
	}
	return ValidationException.Errorf("%d validation errors detected: %s", c.count, strings.Join(c.breaches, "; "))
}

// add notes a breach; value is quoted already.
func (c *checker) add(value, path, constraint string) {
	c.count++
	if len(c.breaches) < mostBreaches {
		c.breaches = append(c.breaches, strings.TrimSpace("Value "+value)+" at '"+path+"' failed to satisfy constraint: "+constraint)
	}
}

// absent notes that a member is not there that must be.
func (c *checker) absent(path string) {
	if c.gone == nil {
		c.gone = map[string]bool{}
	}
	c.gone[path] = true
	c.add("null", path, "Member must not be null")
}

// refuse notes that the value at path breaks a constraint.
func (c *checker) refuse(v reflect.Value, path, shape, constraint string) {
	if rules[shape].sensitive {
		c.add("", path, constraint)
		return
	}
	c.add("'"+cut(text(v, rules[shape]))+"'", path, constraint)
}

// structure checks the members that are there.
func (c *checker) structure(v reflect.Value, path string) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		shape, _ := shapeOf(f)
		at := join(path, f.Name)
		if member := v.Field(i); !missing(member) && !c.gone[at] {
			c.value(reflect.Indirect(member), at, shape)
		}
	}
}

// join names a member in a message: "snapStart.applyOn".
func join(path, name string) string {
	name = strings.ToLower(name[:1]) + name[1:]
	if path == "" {
		return name
	}
	return path + "." + name
}

// shapeOf returns a member's shape, and whether it must be there.
func shapeOf(f reflect.StructField) (shape string, required bool) {
	return strings.CutSuffix(f.Tag.Get("is"), ",required")
}

// missing tells whether a member that need not be there is not.
func missing(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return v.IsNil()
	}
	return false
}

func (c *checker) value(v reflect.Value, path, shape string) {
	r := rules[shape]
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() != reflect.TypeFor[Time]() {
			c.structure(v, path)
		}
		return
	case reflect.Slice:
		if r.member != "" {
			c.list(v, path, shape)
			return
		}
	case reflect.Map:
		c.mapping(v, path, shape)
		return
	}
	for _, broken := range r.breaches(v) {
		c.refuse(v, path, shape, broken)
	}
}

func (c *checker) list(v reflect.Value, path, shape string) {
	r := rules[shape]
	for _, broken := range r.breaches(v) {
		c.refuse(v, path, shape, broken)
	}
	for i := range v.Len() {
		element := v.Index(i)
		if element.Kind() == reflect.Struct {
			c.structure(element, path+"."+strconv.Itoa(i+1)+".member")
		} else if len(rules[r.member].breaches(element)) > 0 {
			c.refuse(v, path, shape, "Member must satisfy constraint: "+rules[r.member].list(!r.sparse))
			return
		}
	}
}

func (c *checker) mapping(v reflect.Value, path, shape string) {
	r := rules[shape]
	for _, broken := range r.breaches(v) {
		c.refuse(v, path, shape, broken)
	}
	for _, key := range v.MapKeys() {
		if len(rules[r.key].breaches(key)) > 0 {
			c.refuse(v, path, shape, "Map keys must satisfy constraint: "+rules[r.key].list(false))
			return
		}
	}
	for _, key := range v.MapKeys() {
		value := v.MapIndex(key)
		if value.Kind() == reflect.Slice {
			c.list(value, path+"."+cut(key.String())+".member", r.value)
		} else if len(rules[r.value].breaches(value)) > 0 {
			c.refuse(v, path, shape, "Map value must satisfy constraint: "+rules[r.value].list(true))
			return
		}
	}
}

// breaches returns the constraints that a value breaks by itself.
func (r rule) breaches(v reflect.Value) []string {
	var broken []string
	size, what := measure(v)
	if r.max != nil && size > *r.max {
		broken = append(broken, r.most(what))
	}
	if r.min != nil && size < *r.min {
		broken = append(broken, r.least(what))
	}
	if r.match != nil && (!r.match().MatchString(v.String()) || r.not != nil && r.not().MatchString(v.String())) {
		broken = append(broken, r.form())
	}
	if r.enum != nil && !slices.Contains(r.enum, v.String()) {
		broken = append(broken, r.choice())
	}
	return broken
}

func (r rule) most(what string) string {
	return "Member must have " + what + " less than or equal to " + r.number(*r.max)
}

func (r rule) least(what string) string {
	least := 0.0
	if r.min != nil {
		least = *r.min
	}
	return "Member must have " + what + " greater than or equal to " + r.number(least)
}

func (r rule) form() string {
	return "Member must satisfy regular expression pattern: " + r.pattern
}

func (r rule) choice() string {
	return "Member must satisfy enum value set: [" + strings.Join(r.enum, ", ") + "]"
}

// list writes all constraints, kept or not, as messages about members of lists and maps do.
func (r rule) list(notNull bool) string {
	what := "length"
	if r.double || r.max != nil && r.pattern == "" && r.enum == nil && r.long {
		what = "value"
	}
	var all []string
	if r.max != nil {
		all = append(all, r.most(what), r.least(what))
	}
	if r.pattern != "" {
		all = append(all, r.form())
	}
	if r.enum != nil {
		all = append(all, r.choice())
	}
	if notNull {
		all = append(all, "Member must not be null")
	}
	return "[" + strings.Join(all, ", ") + "]"
}

func (r rule) number(f float64) string {
	if r.double {
		return decimal(f)
	}
	return strconv.FormatFloat(f, 'f', -1, 64)
}

// decimal writes a fraction with at least one decimal, as Java does.
func decimal(f float64) string {
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// measure returns what the least and the most are of.
func measure(v reflect.Value) (size float64, what string) {
	switch v.Kind() {
	case reflect.Int:
		return float64(v.Int()), "value"
	case reflect.Float64:
		return v.Float(), "value"
	case reflect.String:
		return float64(utf8.RuneCountInString(v.String())), "length"
	case reflect.Slice, reflect.Map:
		return float64(v.Len()), "length"
	}
	return 0, "value"
}

// text writes a value as messages repeat it: [a, b], {k=v}. What comes after more than
// a message holds is not looked at.
func text(v reflect.Value, r rule) string {
	switch v.Kind() {
	case reflect.Slice:
		var parts []string
		for i := 0; i < min(v.Len(), longest) && !rules[r.member].sensitive; i++ {
			parts = append(parts, text(v.Index(i), rules[r.member]))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case reflect.Map:
		var parts []string
		if !rules[r.value].sensitive {
			m, _ := v.Interface().(map[string]string)
			for _, k := range slices.Sorted(maps.Keys(m)) {
				parts = append(parts, k+"="+m[k])
			}
			w, _ := v.Interface().(map[string]float64)
			for _, k := range slices.Sorted(maps.Keys(w)) {
				parts = append(parts, k+"="+decimal(w[k]))
			}
		}
		return "{" + strings.Join(parts, ", ") + "}"
	case reflect.Float64:
		return decimal(v.Float())
	case reflect.Struct:
		return v.Type().Name()
	}
	return fmt.Sprint(v.Interface())
}
