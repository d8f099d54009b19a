# Completes twiddler in bash: verbs, options, and the names of the server's processes and groups.
# bash splits words at : and =, which names of processes and options contain. This function joins the
# parts for twiddler, and removes everything up to the last : or = from the candidates.
_twiddler() {
    local line=${COMP_LINE:0:COMP_POINT} words=() word i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $i -eq 0 || $line == [[:blank:]]* || -z $line ]]; then
            line=${line#"${line%%[![:blank:]]*}"}
            words+=("")
        fi
        ((i == COMP_CWORD)) && word=$line
        words[${#words[@]} - 1]+=$word
        line=${line#"$word"}
    done
    local current=${words[${#words[@]} - 1]} prefix="" candidate
    case $current in
        [\'\"]*) # bash does not split a quoted word.
            current=${current:1}
            words[${#words[@]} - 1]=$current
            ;;
        *[:=]*) prefix=${current%"${current##*[:=]}"} ;;
    esac
    COMPREPLY=()
    while IFS= read -r candidate || [[ -n $candidate ]]; do
        [[ $candidate == "$current"* ]] && COMPREPLY+=("${candidate#"$prefix"}")
    done < <(
        _CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=$((${#words[@]} - 1)) \
            _CLAP_COMPLETE_COMP_TYPE=$COMP_TYPE _CLAP_COMPLETE_SPACE=false \
            COMPLETE=bash twiddler -- "${words[@]}" 2>/dev/null
    )
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} != *[=/:] ]] && COMPREPLY[0]+=" "
}
complete -o nospace -o bashdefault -o nosort -F _twiddler twiddler 2>/dev/null ||
    complete -o nospace -o bashdefault -F _twiddler twiddler
