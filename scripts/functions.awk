# The functions of C++ sources that are too long:  awk -v limit=60 -f scripts/functions.awk FILE...
#
# Prints FILE:LINE NAME LINES for each that has more lines than `limit`, from its first word to its closing brace. A
# function begins at a { outside of any other function whose statement (`text`: all since the last ; { or }) has
# parentheses and declares no type or namespace.
FNR == 1 { depth = inside = continued = 0; text = "" }
{
    line = $0
    directive = continued || line ~ /^[ \t]*#/
    continued = directive && line ~ /\\$/
    if (directive) next
    gsub(/\\./, "", line)          # escapes, literals and comments may hold braces
    gsub(/'[^']'/, "", line)
    gsub(/"[^"]*"/, "", line)
    sub(/\/\/.*/, "", line)
    count = length(line)
    for (i = 1; i <= count; i++) {
        c = substr(line, i, 1)
        if (c == "{") {
            depth++
            sub(/^template *<[^>]*> */, "", text)
            if (!inside && text ~ /\(/ && text !~ /^(namespace|struct|class|union|enum) /) {
                inside = depth
                start = first
                name = text
                sub(/ *\(.*/, "", name)
                sub(/.*[ *&]/, "", name)
            }
            text = ""
        } else if (c == "}") {
            if (inside == depth) {
                inside = 0
                if (FNR - start + 1 > limit) print FILENAME ":" start, name, FNR - start + 1
            }
            depth--
            text = ""
        } else if (c == ";") {
            text = ""
        } else if (text != "" || c !~ /[ \t]/) {
            if (text == "") first = FNR
            text = text c
        }
    }
    if (text != "") text = text " "
}
